"""From the curves of a study's runs to its results: figures per arm, paired differences, verdicts."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import cast

from iwopd.ablate.arms import Arm, Run
from iwopd.ablate.curves import Axis, Curve, read_curve, study_figures, value_at
from iwopd.ablate.records import COMPARED, ArmResults, Comparison, Difference, MeanCurve, StudyResults, Summary
from iwopd.config import Config
from iwopd.report.paired import LEVEL, adjusted_pvalues, bootstrap_interval, sign_flip_pvalue, units_needed

COSTS = ("tokens_generated", "tokens_scored", "tokens_trained", "seconds", "evaluation_seconds", "peak_mib")
GRID = 41  # places on the token axis at which curves of different lengths are averaged


@dataclass(frozen=True)
class Finished:
    """A run that is done: its curve, and its figures."""

    curve: Curve
    figures: Mapping[str, float]


def study_results(config: Config, arms: Sequence[Arm], runs: Sequence[Run], failed: Mapping[str, str]) -> StudyResults:
    """What study.json holds, as plain values.

    Each figure of an arm is over its `seeds`, sd of the sample.
    """
    section = config.ablate
    axis: Axis = section.match  # pyright: ignore[reportAssignmentType]  its choices are checked by the schema
    finished = finished_runs(runs, section.baseline, section.early, axis)
    steps = [place.step for item in finished.values() for place in item.curve.points if place.step <= section.early]
    compared = [arm.name for arm in arms if arm.name != section.baseline]
    students = {run.seed: run.config.student.path for run in runs if run.arm == section.baseline}
    return {
        "name": str(config.run.name),
        "command": [*sys.argv[0].split(), *sys.argv[1:]],
        "match": axis,
        "early_step": max(steps, default=0),
        "steps": max((item.curve.steps for item in finished.values()), default=0),
        "baseline": section.baseline,
        "seeds": sorted({run.seed for run in runs}),
        "benchmarks": list(config.eval.benchmarks),
        "samples": config.eval.n or config.eval.k,
        "batch_size": config.data.batch_size,
        "student": next(iter(students.values()), config.student.path),
        "students": [students[seed] for seed in sorted(students)],
        "teacher": config.teacher.path,
        "arms": [arm_results(arm, finished, axis) for arm in arms],
        "comparisons": comparisons(compared, section.baseline, finished),
        "failed": dict(failed),
    }


def finished_runs(runs: Sequence[Run], baseline: str, early: int, axis: Axis) -> dict[tuple[str, int], Finished]:
    """The runs that are done, by arm and seed."""
    curves = {(run.arm, run.seed): read_curve(run.folder) for run in runs if run.done}
    found = study_figures(curves, baseline, early, axis)
    return {key: Finished(curve, found[key]) for key, curve in curves.items()}


def arm_results(arm: Arm, finished: Mapping[tuple[str, int], Finished], axis: Axis) -> ArmResults:
    """An arm's figures, costs and mean curve."""
    own = {seed: item for (name, seed), item in sorted(finished.items()) if name == arm.name}
    measured = [item.figures for item in own.values()]
    costs = [item.curve.cost for item in own.values()]
    found = {
        "name": arm.name,
        "overrides": list(arm.overrides),
        "seeds": list(own),
        **{name: summary([figure[name] for figure in measured]) for name in ("before", *COMPARED)},
        **{name: summary([cost[name] for cost in costs if name in cost]) for name in COSTS},
        "curve": mean_curve([item.curve for item in own.values()], axis),
    }
    return cast(ArmResults, found)


def summary(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation, null where there are too few values for them."""
    return {
        "mean": fmean(values) if values else None,
        "sd": stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }


def mean_curve(curves: Sequence[Curve], axis: Axis) -> MeanCurve:
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
        "mean": [fmean(item["values"]) for item in summaries],
        "sd": [item["sd"] for item in summaries],
        "values": values,
    }


def comparisons(arms: Sequence[str], baseline: str, finished: Mapping[tuple[str, int], Finished]) -> list[Comparison]:
    """Each arm minus baseline, paired by seed, and judged as one family of differences."""
    seeds = sorted({seed for _, seed in finished})
    looks = {
        (arm, figure): [_minus(finished.get((arm, seed)), finished.get((baseline, seed)), figure) for seed in seeds]
        for arm in arms
        for figure in COMPARED
    }
    tested = [key for key, values in looks.items() if any(value is not None for value in values)]
    adjusted = dict(zip(tested, adjusted_pvalues([looks[key] for key in tested]), strict=True)) if tested else {}
    found = []
    for arm in arms:
        shared = [seed for seed in seeds if (arm, seed) in finished and (baseline, seed) in finished]
        judged = {
            figure: difference(
                [value for value in looks[arm, figure] if value is not None], adjusted.get((arm, figure))
            )
            for figure in COMPARED
        }
        found.append(cast(Comparison, {"name": arm, "baseline": baseline, "seeds": shared, **judged}))
    return found


def _minus(ours: Finished | None, theirs: Finished | None, figure: str) -> float | None:
    return None if ours is None or theirs is None else ours.figures[figure] - theirs.figures[figure]


def difference(values: Sequence[float], p_adjusted: float | None = None) -> Difference:
    """The mean of paired differences, its 95 % bootstrap interval, the sign-flip p-value, and a verdict.

    The verdict is ``larger than the noise`` if the p-value, corrected for every difference that the study looks at
    (`adjusted_pvalues`), is at most 0.05; ``too few seeds`` where none could be; else ``inconclusive``.

    Args:
        p_adjusted: the corrected p-value; None where this is the only difference.
    """
    n = len(values)
    low, high = bootstrap_interval(values) if n > 1 else (None, None)
    p = sign_flip_pvalue(values) if n else None
    corrected = p if p_adjusted is None else p_adjusted
    if corrected is None or n < units_needed():
        verdict = "too few seeds"
    else:
        verdict = "larger than the noise" if corrected <= LEVEL else "inconclusive"
    return {
        "difference": fmean(values) if values else None,
        "low": low,
        "high": high,
        "p": p,
        "p_adjusted": corrected,
        "ahead": sum(value > 0 for value in values),
        "values": list(values),
        "verdict": verdict,
    }
