"""From the curves of a study's runs to its results: figures per arm, paired differences, verdicts."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from iwopd.config import Config
from iwopd.study.arms import Arm, Run
from iwopd.study.curves import Axis, Curve, early_place, figures, read_curve, value_at

COMPARED = ("early", "best", "final", "auc")
COSTS = ("tokens_generated", "tokens_scored", "tokens_trained", "seconds", "evaluation_seconds", "peak_mib")
ENOUGH_SEEDS = 5  # with fewer, 2/2^n is so large that chance alone often gives all signs alike
GRID = 41  # places on the token axis at which curves of different lengths are averaged


@dataclass(frozen=True)
class Finished:
    """A run that is done: its curve, and its figures."""

    curve: Curve
    figures: Mapping[str, float]


def study_results(
    config: Config, arms: Sequence[Arm], runs: Sequence[Run], failed: Mapping[str, str]
) -> dict[str, Any]:
    """What study.json holds, as plain values.

    Each figure of an arm is ``{mean, sd, values}`` over its `seeds` (sd: of the sample, null for one seed); each of a
    comparison is ``{difference, low, high, p, ahead, values, verdict}``, arm minus baseline over the seeds that both
    have.
    """
    section = config.ablate
    axis: Axis = section.match  # pyright: ignore[reportAssignmentType]  its choices are checked by the schema
    finished = finished_runs(runs, section.baseline, section.early, axis)
    steps = [place.step for item in finished.values() for place in item.curve.points if place.step <= section.early]
    compared = [arm.name for arm in arms if arm.name != section.baseline]
    return {
        "name": config.run.name,
        "command": [*sys.argv[0].split(), *sys.argv[1:]],
        "match": axis,
        "early_step": max(steps, default=0),
        "steps": max((item.curve.steps for item in finished.values()), default=0),
        "baseline": section.baseline,
        "seeds": sorted({run.seed for run in runs}),
        "benchmarks": list(config.eval.benchmarks),
        "samples": config.eval.n or config.eval.k,
        "batch_size": config.data.batch_size,
        "student": config.student.path,
        "teacher": config.teacher.path,
        "arms": [arm_results(arm, finished, axis) for arm in arms],
        "comparisons": [comparison(name, section.baseline, finished) for name in compared],
        "failed": dict(failed),
    }


def finished_runs(runs: Sequence[Run], baseline: str, early: int, axis: Axis) -> dict[tuple[str, int], Finished]:
    """The runs that are done, by arm and seed."""
    curves = {(run.arm, run.seed): read_curve(run.folder) for run in runs if run.done}
    found = {}
    for (arm, seed), curve in curves.items():
        place = early_place(curves.get((baseline, seed), curve), early, axis)
        found[arm, seed] = Finished(curve, figures(curve, place, axis))
    return found


def arm_results(arm: Arm, finished: Mapping[tuple[str, int], Finished], axis: Axis) -> dict[str, Any]:
    """An arm's figures, costs and mean curve."""
    own = {seed: item for (name, seed), item in sorted(finished.items()) if name == arm.name}
    measured = [item.figures for item in own.values()]
    costs = [item.curve.cost for item in own.values()]
    return {
        "name": arm.name,
        "overrides": list(arm.overrides),
        "seeds": list(own),
        **{name: summary([figure[name] for figure in measured]) for name in ("before", *COMPARED)},
        **{name: summary([cost[name] for cost in costs if name in cost]) for name in COSTS},
        "curve": mean_curve([item.curve for item in own.values()], axis),
    }


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation, null where there are too few values for them."""
    return {
        "mean": fmean(values) if values else None,
        "sd": stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }


def mean_curve(curves: Sequence[Curve], axis: Axis) -> dict[str, list[Any]]:
    """Accuracy over the axis: mean, sd and each seed's values, at the places of `x`."""
    if not curves:
        return {"x": [], "mean": [], "sd": [], "values": []}
    places: list[float] = list(curves[0].x(axis))
    if axis == "tokens":
        end = min(curve.x(axis)[-1] for curve in curves)
        places = [end * index / (GRID - 1) for index in range(GRID)]
    values = [[value_at(curve.x(axis), curve.accuracies, place) for place in places] for curve in curves]
    summaries = [summary([row[index] for row in values]) for index in range(len(places))]
    return {
        "x": places,
        "mean": [item["mean"] for item in summaries],
        "sd": [item["sd"] for item in summaries],
        "values": values,
    }


def comparison(arm: str, baseline: str, finished: Mapping[tuple[str, int], Finished]) -> dict[str, Any]:
    """Arm minus baseline, paired by seed."""
    seeds = sorted(seed for name, seed in finished if name == arm and (baseline, seed) in finished)
    pairs = [(finished[arm, seed].figures, finished[baseline, seed].figures) for seed in seeds]
    return {
        "name": arm,
        "baseline": baseline,
        "seeds": seeds,
        **{figure: difference([ours[figure] - theirs[figure] for ours, theirs in pairs]) for figure in COMPARED},
    }


def difference(values: Sequence[float]) -> dict[str, Any]:
    """The mean of paired differences, its 95 % bootstrap interval, the exact sign-flip p-value, and a verdict.

    The verdict is ``larger than the noise`` if the interval leaves out 0 and p ≤ 0.05, or p is the smallest that the
    seeds can give and there are five or more; with fewer it is ``too few seeds``; else ``not told apart``.
    """
    from iwopd.numerics.paired import bootstrap_interval, sign_flip_pvalue, smallest_pvalue

    n = len(values)
    low, high = bootstrap_interval(values) if n > 1 else (None, None)
    p = sign_flip_pvalue(values) if n else None
    if low is None or high is None or p is None or n < ENOUGH_SEEDS:
        verdict = "too few seeds"
    elif (low > 0 or high < 0) and p <= max(0.05, smallest_pvalue(n)):
        verdict = "larger than the noise"
    else:
        verdict = "not told apart"
    return {
        "difference": fmean(values) if values else None,
        "low": low,
        "high": high,
        "p": p,
        "ahead": sum(value > 0 for value in values),
        "values": list(values),
        "verdict": verdict,
    }
