"""A report on the console: with colours and boxes on a terminal, plain lines anywhere else."""

from rich.console import Console
from rich.table import Table as RichTable

from iwopd.doctor.findings import Finding, Report, Section, Table
from iwopd.runs.console import plain_console

MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "problem": ("PROBLEM", "red"), "note": ("", "")}
WIDTH = 160  # where there is no terminal to ask


def console() -> Console:
    """Standard output; wide where it is no terminal, so that no line is cut."""
    made = plain_console()
    return made if made.is_terminal else plain_console(WIDTH)


def show(section: Section, to: Console) -> None:
    """One section."""
    to.print()
    to.print(section.title, style="bold")
    for finding in section.findings:
        _line(finding, to)
    for table in section.tables:
        _table(table, to)


def conclude(report: Report, to: Console) -> None:
    """The last lines: what is wrong, once more, and the verdict."""
    problems, warnings = report.count("problem"), report.count("warning")
    to.print()
    for section in report.sections:
        for finding in section.findings:
            if finding.level == "problem":
                to.print(f"  {section.title}: {finding.text}", soft_wrap=True)
    counted = f"{_some(problems, 'problem')}, {_some(warnings, 'warning')}"
    verdict = "this run would work" if report.works else "this run would not work"
    to.print(f"{verdict}: {counted}", style="bold green" if report.works else "bold red")


def _some(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _line(finding: Finding, to: Console) -> None:
    mark, style = MARKS[finding.level]
    to.print(f"  {mark:<8}", style=style or None, end="")
    to.print(finding.text, soft_wrap=True)


def _table(table: Table, to: Console) -> None:
    made = RichTable(title=table.title, title_justify="left", box=None, padding=(0, 2, 0, 0), title_style="italic")
    for number, head in enumerate(table.heads):
        made.add_column(head, justify="right" if 0 < number < len(table.heads) - 1 else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*row)
    to.print(made)
