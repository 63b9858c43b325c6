"""What a check found. Checks never stop one another: each adds to its section, and what it raises becomes a problem."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from iwopd.errors import IwopdError, ModelError, first_line

Level = Literal["ok", "warning", "problem", "note"]


class NotEstimatedError(ModelError):
    """Memory or time of an architecture that cannot be estimated without data; the run itself may well work."""


@dataclass(frozen=True)
class Finding:
    """One line: `problem` means that the run would not work, `note` is for reading only."""

    level: Level
    text: str


@dataclass
class Section:
    """The findings of one topic, and its tables: title, heads and rows of words."""

    title: str
    findings: list[Finding] = field(default_factory=list[Finding])
    tables: list["Table"] = field(default_factory=list["Table"])

    def ok(self, text: str) -> None:
        """Checked and good."""
        self.findings.append(Finding("ok", text))

    def note(self, text: str) -> None:
        """To be read, neither good nor bad."""
        self.findings.append(Finding("note", text))

    def warn(self, text: str) -> None:
        """It would run, or could not be checked; says what to look at."""
        self.findings.append(Finding("warning", text))

    def problem(self, text: str) -> None:
        """It would not run; says what to do."""
        self.findings.append(Finding("problem", text))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What the block raises becomes a problem, or a warning where only an estimate is missing; the next check goes
        on."""
        try:
            yield
        except NotEstimatedError as error:
            self.warn(str(error))
        except IwopdError as error:
            for line in str(error).splitlines():
                self.problem(line)
        except Exception as error:  # of a library, or a fault of this program: the other checks are still of use
            self.problem(f"this could not be checked: {type(error).__name__}: {first_line(error)}; please report it")


@dataclass(frozen=True)
class Table:
    """Rows of words under `heads`; columns from the second on are numbers where `numbers` says so."""

    title: str
    heads: list[str]
    rows: list[list[str]]


@dataclass
class Report:
    """All sections, and the estimate as plain values for `doctor.json`."""

    sections: list[Section] = field(default_factory=list[Section])
    values: dict[str, Any] = field(default_factory=dict[str, Any])

    def section(self, title: str) -> Section:
        """A new one."""
        self.sections.append(Section(title))
        return self.sections[-1]

    def count(self, level: Level) -> int:
        """Findings of that level."""
        return sum(finding.level == level for section in self.sections for finding in section.findings)

    @property
    def works(self) -> bool:
        """True without problems."""
        return self.count("problem") == 0

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        sections = [
            {
                "title": section.title,
                "findings": [{"level": finding.level, "text": finding.text} for finding in section.findings],
                "tables": [vars(table) for table in section.tables],
            }
            for section in self.sections
        ]
        return {"works": self.works, "sections": sections, **self.values}
