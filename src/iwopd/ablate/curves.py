"""What a run's metrics.jsonl says: accuracy over steps and tokens, and what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from iwopd.ablate.workers import read_note
from iwopd.runs.files import read_rows

Axis = Literal["steps", "tokens"]


@dataclass(frozen=True)
class Point:
    """One evaluation: after how many steps and generated tokens, and the accuracy (mean@k, share)."""

    step: int
    tokens: int
    accuracy: float


@dataclass(frozen=True)
class Curve:
    """A run so far.

    Attributes:
        points: its evaluations, by step.
        steps: steps taken.
        cost: tokens_generated, tokens_scored, tokens_trained (counts over the run); seconds (rollout, scoring and
            update; evaluation apart) and evaluation_seconds; peak_mib (of the GPU's memory where there is one, else of
            the process's), once it has ended.
    """

    points: tuple[Point, ...]
    steps: int = 0
    cost: Mapping[str, float] = field(default_factory=dict[str, float])

    def x(self, axis: Axis) -> list[int]:
        """Where the points lie."""
        return [point.step if axis == "steps" else point.tokens for point in self.points]

    @property
    def accuracies(self) -> list[float]:
        return [point.accuracy for point in self.points]


def read_curve(folder: Path) -> Curve:
    """A run's curve, also of one that is still going; what is not whole yet is left out."""
    points: list[Point] = []
    counted = ("tokens_generated", "tokens_scored", "tokens_trained", "seconds", "evaluation_seconds")
    cost: dict[str, float] = dict.fromkeys(counted, 0.0)
    steps = 0
    for row in read_rows(folder / "metrics.jsonl"):
        if "eval/accuracy" in row:
            points.append(Point(row["step"], int(cost["tokens_generated"]), row["eval/accuracy"]))
            cost["evaluation_seconds"] += row.get("time/eval_s", 0.0)
        if "tokens/generated" in row:
            steps = row["step"]
            for name in ("generated", "scored", "trained"):
                cost[f"tokens_{name}"] += row.get(f"tokens/{name}", 0)
            cost["seconds"] += sum(row.get(f"time/{stage}_s", 0.0) for stage in ("rollout", "score", "update"))
            if "memory/peak_mib" in row:
                cost["peak_mib"] = max(cost.get("peak_mib", 0.0), row["memory/peak_mib"])
    noted = read_note(folder)
    if "peak_mib" not in cost and "peak_mib" in noted:
        cost["peak_mib"] = noted["peak_mib"]
    return Curve(tuple(points), steps, cost)


def early_place(curve: Curve, step: int, axis: Axis) -> int:
    """Where on the axis the early figure is taken: the last evaluation up to `step`.

    For equal tokens it is the baseline's tokens there, so that all arms are compared after as many.
    """
    places = curve.x(axis)
    return max((x for x, point in zip(places, curve.points, strict=True) if point.step <= step), default=0)


def study_figures(
    curves: Mapping[tuple[str, int], Curve], baseline: str, early: int, axis: Axis
) -> dict[tuple[str, int], dict[str, float]]:
    """`figures` of the finished runs of a study, by arm and seed; those of one seed at the same places."""
    found = {}
    for seed in {seed for _, seed in curves}:
        own = {arm: curve for (arm, other), curve in curves.items() if other == seed}
        grid = common_grid(list(own.values()), axis)
        for arm, curve in own.items():
            place = early_place(own.get(baseline, curve), early, axis)
            found[arm, seed] = figures(curve, place, axis, grid)
    return found


def common_grid(curves: Sequence[Curve], axis: Axis) -> list[float]:
    """The places at which all these runs are compared: the evaluations of the one that had the fewest, up to where the
    first of them ends.

    With equal tokens, runs are evaluated at different places and unlike numbers of times. Of more evaluations the best
    is better by chance, and trapezoids through few cut off more of a curve that bends: at 17 against 8 evaluations of
    one and the same curve the area differed by 0.003.
    """
    ends = min(curve.x(axis)[-1] for curve in curves)
    fewest = min(curves, key=lambda curve: len(curve.points)).x(axis)
    return [*sorted({float(place) for place in fewest if place < ends}), float(ends)]


def figures(curve: Curve, early: int, axis: Axis, grid: Sequence[float] | None = None) -> dict[str, float]:
    """The figures of one finished run: accuracy before, at `early` (a place on the axis), at its best, at the end, and
    auc, the area under the accuracy curve (trapezoids) over its length: the mean accuracy of the whole training.

    Args:
        grid: where the curve is looked at; the run's own evaluations by default. `early` is taken at the place of the
            grid next to it (never at the start), the best among the evaluations next to each place (values between
            evaluations have less noise, and so a smaller maximum), area and early on a smooth curve through all.
    """
    x, y = curve.x(axis), curve.accuracies
    if grid is None:
        return {"before": y[0], "early": value_at(x, y, early), "best": max(y), "final": y[-1], "auc": area(x, y)}
    values = smooth(x, y, grid)
    nearest = [min(range(len(x)), key=lambda index: abs(x[index] - place)) for place in grid]
    chosen = min(range(min(1, early, len(grid) - 1), len(grid)), key=lambda index: abs(grid[index] - early))
    return {
        "before": y[0],
        "early": values[chosen],
        "best": max(y[index] for index in nearest),
        "final": y[-1],
        "auc": area(grid, values),
    }


def smooth(x: Sequence[float], y: Sequence[float], places: Sequence[float]) -> list[float]:
    """y at `places` on a monotone cubic curve through the points (PCHIP), the end's value outside; of a learning curve
    straight lines would cut off the bend."""
    from scipy.interpolate import PchipInterpolator  # 0.3 s, which refusing a wrong setting does without

    known = dict(zip(x, y, strict=True))
    if len(known) < 2:
        return [y[-1]] * len(places)
    first, last = min(known), max(known)
    curve = PchipInterpolator(sorted(known), [known[place] for place in sorted(known)])
    return [known[place] if place in known else float(curve(min(max(place, first), last))) for place in places]


def value_at(x: Sequence[float], y: Sequence[float], place: float) -> float:
    """y at `place`, on the straight line between its neighbours; the end's value outside.

    Raises:
        ValueError: no points.
    """
    if not x:
        raise ValueError("a curve needs at least one point")
    if place <= x[0]:
        return y[0]
    for left in range(len(x) - 1):
        if x[left] <= place <= x[left + 1] and x[left] < x[left + 1]:
            share = (place - x[left]) / (x[left + 1] - x[left])
            return y[left] + share * (y[left + 1] - y[left])
    return y[-1]


def area(x: Sequence[float], y: Sequence[float]) -> float:
    """Area under the line through the points, divided by its length; y itself for a line without length."""
    if x[-1] <= x[0]:
        return y[-1]
    trapezoids = ((right - left) * (low + high) / 2 for left, right, low, high in zip(x, x[1:], y, y[1:], strict=False))
    return sum(trapezoids) / (x[-1] - x[0])
