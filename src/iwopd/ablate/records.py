"""What study.json holds, by its keys."""

from typing import Literal, TypedDict

Figure = Literal["early", "best", "final", "auc"]
COMPARED: tuple[Figure, ...] = ("early", "best", "final", "auc")
ACCURACIES: tuple[Literal["before"] | Figure, ...] = ("before", *COMPARED)


class Summary(TypedDict):
    """Of the values of all seeds; null where there are too few."""

    mean: float | None
    sd: float | None
    values: list[float]


class MeanCurve(TypedDict):
    """Accuracy at the places of `x` (steps or tokens), a list for each in `values`, with one value per seed."""

    x: list[float]
    mean: list[float]
    sd: list[float | None]
    values: list[list[float]]


class ArmResults(TypedDict):
    """An arm's accuracies, costs per run, and mean curve."""

    name: str
    overrides: list[str]
    seeds: list[int]
    before: Summary
    early: Summary
    best: Summary
    final: Summary
    auc: Summary
    tokens_generated: Summary
    tokens_scored: Summary
    tokens_trained: Summary
    seconds: Summary
    evaluation_seconds: Summary
    peak_mib: Summary
    curve: MeanCurve


class Difference(TypedDict):
    """Arm minus baseline over the seeds that both have; p_adjusted is corrected for all differences of the study."""

    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    ahead: int
    values: list[float]
    verdict: str


class Comparison(TypedDict):
    """An arm against the baseline."""

    name: str
    baseline: str
    seeds: list[int]
    early: Difference
    best: Difference
    final: Difference
    auc: Difference


class StudyResults(TypedDict):
    """The whole study; `students` has the student.path of each of `seeds`, `student` the first of ablate.students."""

    name: str
    command: list[str]
    match: str
    early_step: int
    steps: int
    baseline: str
    seeds: list[int]
    benchmarks: list[str]
    samples: int
    batch_size: int
    student: str
    students: list[str]
    teacher: str
    arms: list[ArmResults]
    comparisons: list[Comparison]
    failed: dict[str, str]
