"""Accuracy of a model on problems with answers: mean@k, pass@k, greedy, lengths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from iwopd.engines.base import Engine, Progress, Sampling, silent
from iwopd.grading import Grader
from iwopd.numerics.stats import mean_interval, pass_at_k
from iwopd.types import Prompt, Rollout


@dataclass(frozen=True)
class Benchmark:
    """Problems with answers, and how to grade them."""

    name: str
    prompts: list[Prompt]
    grader: Grader


@dataclass(frozen=True)
class Graded:
    """One response, to which prompt, and whether it is right."""

    prompt: Prompt
    rollout: Rollout
    text: str
    correct: bool


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one benchmark: `metrics` without prefix, and every sampled response."""

    benchmark: str
    metrics: dict[str, float]
    graded: list[Graded] = field(default_factory=list[Graded], repr=False)


def evaluate(
    engine: Engine,
    benchmark: Benchmark,
    sampling: Sampling,
    *,
    k: int,
    greedy: bool,
    seed: int,
    decode: Callable[[Sequence[int]], str],
    progress: Progress = silent,
) -> Evaluation:
    """Sample `sampling.n` responses to every problem and grade them.

    The same noise is drawn at every evaluation, so two evaluations of a run differ by the model alone.

    Metrics: ``accuracy`` (mean@k: the mean over problems of their share of right samples) and ``pass_at_k`` with
    ``_low`` and ``_high`` of a 95 % interval over problems, ``greedy_accuracy``, ``response_length`` (tokens, mean),
    ``truncated`` (share cut by length), ``problems``, ``samples``, ``k``.
    """
    rollouts = engine.generate(benchmark.prompts, sampling, seed=seed, stream="eval", progress=progress)
    graded = grade(benchmark, rollouts, decode)
    n = sampling.n
    right = [sum(item.correct for item in graded[i : i + n]) for i in range(0, len(graded), n)]
    accuracy, low, high = mean_interval([correct / n for correct in right])
    passed, passed_low, passed_high = mean_interval([pass_at_k(n, correct, k) for correct in right])
    metrics: dict[str, float] = {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "pass_at_k": passed,
        "pass_at_k_low": passed_low,
        "pass_at_k_high": passed_high,
    }
    if greedy:
        once = engine.generate(benchmark.prompts, replace(sampling, n=1, temperature=0.0), seed=seed, stream="eval")
        answers = grade(benchmark, once, decode)
        metrics["greedy_accuracy"] = sum(item.correct for item in answers) / len(answers)
    metrics["response_length"] = sum(len(item.rollout.response_ids) for item in graded) / len(graded)
    metrics["truncated"] = sum(item.rollout.finish_reason == "length" for item in graded) / len(graded)
    metrics.update(problems=len(right), samples=n, k=k)
    return Evaluation(benchmark.name, metrics, graded)


def grade(benchmark: Benchmark, rollouts: Sequence[Rollout], decode: Callable[[Sequence[int]], str]) -> list[Graded]:
    """Each rollout with its verdict."""
    prompts = {prompt.id: prompt for prompt in benchmark.prompts}
    graded = []
    for rollout in rollouts:
        text = decode(rollout.response_ids)
        prompt = prompts[rollout.prompt_id]
        assert prompt.answer is not None, "benchmarks have answers: checked when their rows were read"
        graded.append(Graded(prompt, rollout, text, benchmark.grader(text, prompt.answer)))
    return graded
