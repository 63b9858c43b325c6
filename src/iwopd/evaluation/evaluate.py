"""Accuracy of a model on problems with answers: mean@k, pass@k, greedy, lengths."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from iwopd.evaluation.grading import Grader, Verdict
from iwopd.parallel import world
from iwopd.report.stats import mean_interval, pass_at_k
from iwopd.rollout.base import Engine, Progress, Sampling, no_progress
from iwopd.rollout.tally import Series
from iwopd.types import Prompt, Rollout

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Benchmark:
    """Problems with answers, and how to grade them."""

    name: str
    prompts: list[Prompt]
    grader: Grader


@dataclass(frozen=True)
class Graded:
    """One response, to which prompt, and the verdict on it."""

    prompt: Prompt
    rollout: Rollout
    text: str
    verdict: Verdict

    @property
    def correct(self) -> bool:
        """True where it is right."""
        return self.verdict.correct


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the figures need of one response.

    Attributes:
        prompt_id: the problem.
        sample: index among its samples.
        greedy: the most likely tokens were taken, instead of sampling.
        tokens: length, end-of-sequence token included.
        truncated: cut by its length.
        correct: right.
        timed_out: grading was given up.
    """

    prompt_id: str
    sample: int
    greedy: bool
    tokens: int
    truncated: bool
    correct: bool
    timed_out: bool

    @classmethod
    def of(cls, item: Graded, *, greedy: bool) -> "Outcome":
        """Of a graded response."""
        rollout, verdict = item.rollout, item.verdict
        truncated = rollout.finish_reason == "length"
        tokens = len(rollout.response_ids)
        return cls(rollout.prompt_id, rollout.sample, greedy, tokens, truncated, verdict.correct, verdict.timed_out)


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one benchmark: `metrics` without prefix, every outcome, and the responses sampled now."""

    benchmark: str
    metrics: dict[str, float]
    outcomes: list[Outcome] = field(default_factory=list[Outcome], repr=False)
    graded: list[Graded] = field(default_factory=list[Graded], repr=False)


class Kept(Protocol):
    """Where an evaluation keeps what it has, to be resumed with."""

    def find(self, prompts: Sequence[Prompt]) -> list[Outcome] | None:
        """The outcomes of these problems, if they were kept together."""
        ...

    def add(self, sampled: Sequence[Graded], greedy: Sequence[Graded]) -> None:
        """Keep the responses to some problems."""
        ...


def evaluate(
    engine: Engine,
    benchmark: Benchmark,
    sampling: Sampling,
    *,
    k: int,
    greedy: bool,
    seed: int,
    decode: Decode,
    progress: Progress = no_progress,
    kept: Kept | None = None,
    chunk: int | None = None,
) -> Evaluation:
    """Sample `sampling.n` responses to every problem and grade them.

    The same noise is drawn at every evaluation, so two evaluations of a run differ by the model alone.

    Args:
        progress: told of the responses that are sampled now, greedy ones among them.
        kept: what is there is not sampled again; what is sampled goes there.
        chunk: problems sampled at one time and kept together; None for all. Chunks do not depend on what is kept, so
            an evaluation that was interrupted ends with the figures of one that was not.

    Returns:
        Metrics as `measure` makes them.
    """
    size = chunk or len(benchmark.prompts)
    chunks = [benchmark.prompts[start : start + size] for start in range(0, len(benchmark.prompts), size)]
    there = [kept.find(prompts) if kept else None for prompts in chunks]
    missing = sum(len(prompts) for prompts, found in zip(chunks, there, strict=True) if found is None)
    series = Series(missing * (sampling.n + greedy), sampling.max_tokens, progress)
    most_likely = replace(sampling, n=1, temperature=0.0)
    outcomes, graded = list[Outcome](), list[Graded]()
    try:
        for prompts, found in zip(chunks, there, strict=True):
            if found is None:
                part = replace(benchmark, prompts=prompts)
                sampled = _answers(engine, part, sampling, seed, decode, series.call())
                likely = _answers(engine, part, most_likely, seed, decode, series.call()) if greedy else []
                if kept:
                    kept.add(sampled, likely)
                graded += sampled
                found = [Outcome.of(item, greedy=False) for item in sampled]
                found += [Outcome.of(item, greedy=True) for item in likely]
            outcomes += found
    finally:
        benchmark.grader.close()
    return Evaluation(benchmark.name, measure(outcomes, k), outcomes, graded)


def _answers(
    engine: Engine,
    benchmark: Benchmark,
    sampling: Sampling,
    seed: int,
    decode: Decode,
    progress: Progress,
) -> list[Graded]:
    rollouts = engine.generate(benchmark.prompts, sampling, seed=seed, stream="eval", progress=progress)
    return grade(benchmark, rollouts, decode)


def grade(benchmark: Benchmark, rollouts: Sequence[Rollout], decode: Decode) -> list[Graded]:
    """Each rollout with its verdict."""
    prompts = {prompt.id: prompt for prompt in benchmark.prompts}
    answered = [(decode(rollout.response_ids.tolist()), prompts[rollout.prompt_id]) for rollout in rollouts]
    verdicts = world().alone(lambda: benchmark.grader(answered))
    return [
        Graded(prompt, rollout, text, verdict)
        for rollout, (text, prompt), verdict in zip(rollouts, answered, verdicts, strict=True)
    ]


def measure(outcomes: Sequence[Outcome], k: int) -> dict[str, float]:
    """The figures of an evaluation.

    ``accuracy`` (mean@k: the mean over problems of their share of right samples) and ``pass_at_k`` with ``_low`` and
    ``_high`` of a 95 % interval over problems, ``greedy_accuracy`` where there are greedy answers,
    ``accuracy_finished`` (the share of right ones among the samples that ended, where any did), ``response_length``
    (tokens, mean) with ``_median``, ``_p90`` and ``_max``, ``truncated`` (share cut by length), ``grading_timeouts``
    (answers that were given up, and so counted as wrong), ``problems``, ``samples``, ``k``.
    """
    problems = by_problem(outcomes)
    sampled = [item for items in problems.values() for item in items]
    n = len(sampled) // len(problems)
    metrics = {
        **_interval("accuracy", [_share(items) for items in problems.values()]),
        **_interval("pass_at_k", [pass_at_k(n, _right(items), k) for items in problems.values()]),
    }
    greedy = [item for item in outcomes if item.greedy]
    if greedy:
        metrics["greedy_accuracy"] = _share(greedy)
    if finished := [item for item in sampled if not item.truncated]:
        metrics["accuracy_finished"] = _share(finished)
    lengths = sorted(item.tokens for item in sampled)
    return metrics | {
        "response_length": sum(lengths) / len(lengths),
        "response_length_median": statistics.median(lengths),
        "response_length_p90": lengths[math.ceil(0.9 * len(lengths)) - 1],
        "response_length_max": lengths[-1],
        "truncated": sum(item.truncated for item in sampled) / len(sampled),
        "grading_timeouts": sum(item.timed_out for item in outcomes),
        "problems": len(problems),
        "samples": n,
        "k": k,
    }


def details(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What a results file tells beyond the metrics.

    ``mean_at_k`` and ``pass_at_k`` for k = 1, 2, 4, … up to the number of samples n, and n: ``value``, ``low`` and
    ``high``, a 95 % interval over problems; mean@k is of the first k samples. ``problems``: a row for each.
    """
    problems = by_problem(outcomes)
    n = min(map(len, problems.values()))
    several = sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n})
    means = {k: _interval("", [_share(items[:k]) for items in problems.values()]) for k in several}
    passes = {
        k: _interval("", [pass_at_k(len(items), _right(items), k) for items in problems.values()]) for k in several
    }
    greedy = {item.prompt_id: item.correct for item in outcomes if item.greedy}
    return {
        "mean_at_k": {str(k): _named(found) for k, found in means.items()},
        "pass_at_k": {str(k): _named(found) for k, found in passes.items()},
        "problems": [
            {
                "id": name,
                "right": _right(items),
                "samples": len(items),
                "share": _share(items),
                **({"greedy": greedy[name]} if name in greedy else {}),
                "response_length": sum(item.tokens for item in items) / len(items),
                "truncated": sum(item.truncated for item in items),
                "grading_timeouts": sum(item.timed_out for item in items),
            }
            for name, items in problems.items()
        ],
    }


def by_problem(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The sampled outcomes of each problem, in the order they were sampled."""
    problems: dict[str, list[Outcome]] = {}
    for item in outcomes:
        if not item.greedy:
            problems.setdefault(item.prompt_id, []).append(item)
    return problems


def _interval(name: str, values: Sequence[float]) -> dict[str, float]:
    mean, low, high = mean_interval(values)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _named(found: dict[str, float]) -> dict[str, float]:
    return {"value": found[""], "low": found["_low"], "high": found["_high"]}


def _right(items: Sequence[Outcome]) -> int:
    return sum(item.correct for item in items)


def _share(items: Sequence[Outcome]) -> float:
    return _right(items) / len(items)


def evaluation_metrics(found: Sequence[Evaluation]) -> dict[str, float]:
    """Keys under eval/: of the one benchmark; of several, each under its name and the mean of all above them."""
    if len(found) == 1:
        return {f"eval/{name}": value for name, value in found[0].metrics.items()}
    metrics = {
        f"eval/{evaluation.benchmark}/{name}": value
        for evaluation in found
        for name, value in evaluation.metrics.items()
    }
    for name in ("accuracy", "pass_at_k", "accuracy_finished"):
        values = [evaluation.metrics[name] for evaluation in found if name in evaluation.metrics]
        if values:
            metrics[f"eval/{name}"] = sum(values) / len(values)
    return metrics
