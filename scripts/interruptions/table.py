"""What a campaign found, as Markdown and JSON."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from interruptions.plan import KINDS


@dataclass
class Interruption:
    """What was done and what came of it.

    Attributes:
        lost: steps that are taken again.
        problems: what should not be.
    """

    run: int
    rollout: str
    kind: str
    moment: str
    did: str = ""
    status: int | None = None
    said: str = ""
    lost: int = 0
    problems: list[str] = field(default_factory=list[str])


@dataclass
class Ended:
    """How a run ended, after all its interruptions.

    Attributes:
        sessions: processes that it took.
        resumed: those that took steps from a checkpoint on.
        distance: of other weights, as a part of their norm.
        lost_lines: of metrics.jsonl, where a disk's fault took them and the program said so.
        left: processes, shared memory and drafts that should not be there.
        temporary: names that are left in its folder for temporary files.
    """

    run: int
    rollout: str
    interruptions: int
    sessions: int
    resumed: int
    seconds: float
    same_weights: bool | None = None
    distance: float | None = None
    whole_metrics: bool = False
    lost_lines: int = 0
    left: list[str] = field(default_factory=list[str])
    temporary: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])


def document(given: dict[str, Any], interruptions: Sequence[Interruption], runs: Sequence[Ended]) -> dict[str, Any]:
    """All of it, for JSON."""
    return {
        **given,
        "problems": count_problems(interruptions, runs),
        "interruptions": [asdict(each) for each in interruptions],
        "runs": [asdict(each) for each in sorted(runs, key=lambda each: each.run)],
    }


def count_problems(interruptions: Sequence[Interruption], runs: Sequence[Ended]) -> int:
    """What was lost that should not be, weights that differ, and what was left behind."""
    return sum(len(each.problems) for each in interruptions) + sum(len(each.problems) + len(each.left) for each in runs)


def markdown(given: dict[str, Any], interruptions: Sequence[Interruption], runs: Sequence[Ended]) -> str:
    """The tables."""
    heads = ("rollout", "interruption", "times", "how the process ended", "the last line it said", "steps repeated")
    lines = [_row(*heads, "what should not be"), _row(*["---"] * 7)]
    for rollout, kinds in KINDS.items():
        here = [each for each in interruptions if each.rollout == rollout]
        for kind in dict.fromkeys([*kinds, *(each.kind for each in here)]):
            if found := [each for each in here if each.kind == kind]:
                lines.append(_kind_row(rollout, kind, found))
    heads = (
        "rollout",
        "runs",
        "interruptions",
        "sessions",
        "same weights",
        "metrics.jsonl whole",
        "left behind",
        "temporary files",
    )
    lines += ["", _row(*heads), _row(*["---"] * 8)]
    for rollout in KINDS:
        if found := [each for each in runs if each.rollout == rollout]:
            lines.append(_run_row(rollout, found))
    problems = [
        f"- run {each.run} ({each.rollout}), {each.kind} ({each.did or 'its process'}) at {each.moment}: {problem}"
        for each in interruptions
        for problem in each.problems
    ]
    problems += [
        f"- run {each.run} ({each.rollout}), at its end: {problem}"
        for each in runs
        for problem in [*each.problems, *(f"left behind: {name}" for name in each.left)]
    ]
    said = [f"{key} {value}" for key, value in given.items()]
    return "\n".join([", ".join(said) + ".", "", *lines, "", *(problems or ["Nothing else was lost."]), ""])


def _kind_row(rollout: str, kind: str, found: Sequence[Interruption]) -> str:
    lost = [each.lost for each in found]
    problems = sum(len(each.problems) for each in found)
    return _row(
        rollout,
        kind,
        str(len(found)),
        _counted("goes on" if each.status is None else _status(each.status) for each in found),
        _counted((_shortened(each.said) for each in found if each.said), 1),
        f"{sum(lost)} (at most {max(lost)})" if sum(lost) else "0",
        str(problems) if problems else "",
    )


def _run_row(rollout: str, runs: Sequence[Ended]) -> str:
    same = sum(bool(each.same_weights) for each in runs)
    apart = max((each.distance or 0.0 for each in runs), default=0.0)
    return _row(
        rollout,
        str(len(runs)),
        str(sum(each.interruptions for each in runs)),
        str(sum(each.sessions for each in runs)),
        str(sum(each.resumed for each in runs)),
        f"{same} to the bit" + (f", others up to {apart:.1g} of their norm apart" if apart else ""),
        f"{sum(each.whole_metrics for each in runs)}",
        str(sum(len(each.left) for each in runs)),
        str(sum(len(each.temporary) for each in runs)),
    )


def _status(number: int) -> str:
    return f"signal {-number}" if number < 0 else str(number)


def _shortened(line: str) -> str:
    """Without what differs from run to run."""
    plain = re.sub(r"/\S*/run-\d+\S*", "RUN", line)
    plain = re.sub(r"step-\d+", "step-N", re.sub(r"\b\d+(\.\d+)?\b", "N", plain))
    return plain if len(plain) <= 120 else plain[:117] + "…"


def _counted(texts: Iterable[str], most: int = 4) -> str:
    counts = Counter(texts).most_common(most)
    return "; ".join(text if most == 1 else f"{text} × {count}" for text, count in counts)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
