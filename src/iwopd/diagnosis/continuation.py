"""Continuation accuracy: teacher and student go on from the student's prefixes (fig. 1b of arXiv 2606.22600)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from iwopd.diagnosis.records import BINS, POINTS, Curve
from iwopd.engines.base import Engine, Progress, Sampling, silent
from iwopd.numerics import mean_interval
from iwopd.numerics.position import prefix_size
from iwopd.stages.evaluation import Benchmark, grade
from iwopd.types import Prompt, Rollout


def continuation_curve(
    engine: Engine,
    benchmark: Benchmark,
    rollouts: Sequence[Rollout],
    sampling: Sampling,
    *,
    seed: int,
    decode: Callable[[Sequence[int]], str],
    progress: Progress = silent,
) -> Curve:
    """Share of right answers when `engine` goes on after the first 0, 10, … 100 % of each rollout.

    A prefix is fed as prompt ids and response ids, never as text. Prefix and continuation together have at most
    `sampling.max_tokens`. At 100 % nothing is left to write, so every model has the rollouts' own accuracy.

    Args:
        rollouts: one per prompt, so that intervals are over prompts.
    """
    intervals = []
    for point in range(POINTS):
        ended = rollouts if point == BINS else _continued(engine, rollouts, point / BINS, sampling, seed)
        right = [float(item.correct) for item in grade(benchmark, ended, decode)]
        intervals.append(mean_interval(right))
        progress(point + 1, POINTS)
    benchmark.grader.close()
    return Curve(*([interval[part] for interval in intervals] for part in range(3)))


def _continued(
    engine: Engine, rollouts: Sequence[Rollout], share: float, sampling: Sampling, seed: int
) -> list[Rollout]:
    """Rollouts that begin as those given, for `share` of their length, and end as `engine` has it."""
    prefixes = [rollout.response_ids[: prefix_size(len(rollout.response_ids), share)] for rollout in rollouts]
    prompts = [
        Prompt(rollout.prompt_id, rollout.prompt_ids + prefix, text="")
        for rollout, prefix in zip(rollouts, prefixes, strict=True)
    ]
    longest = sampling.max_tokens - min(map(len, prefixes))
    made = engine.generate(
        prompts, replace(sampling, n=1, max_tokens=longest), seed=seed, stream=f"continue from {share:.0%}"
    )
    return [
        replace(
            rollout,
            response_ids=(prefix + new.response_ids)[: sampling.max_tokens],
            sampler_logprobs=[],
            finish_reason=new.finish_reason,
        )
        for rollout, prefix, new in zip(rollouts, prefixes, made, strict=True)
    ]
