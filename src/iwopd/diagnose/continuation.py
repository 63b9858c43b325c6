"""Continuation accuracy: teacher and student continue from the student's prefixes (fig. 1b of arXiv 2606.22600)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy

from iwopd.diagnose.records import BINS, POINTS, Curve
from iwopd.evaluation.evaluate import Benchmark, grade
from iwopd.numerics.position import prefix_size
from iwopd.report.stats import mean_interval
from iwopd.rollout.base import Engine, Progress, Sampling, no_progress
from iwopd.types import Prompt, Rollout


def continuation_curve(
    engine: Engine,
    benchmark: Benchmark,
    rollouts: Sequence[Rollout],
    sampling: Sampling,
    *,
    seed: int,
    decode: Callable[[Sequence[int]], str],
    context: int | None = None,
    progress: Progress = no_progress,
) -> Curve:
    """Share of right answers when `engine` continues after the first 0, 10, … 100 % of each rollout.

    A prefix is fed as prompt ids and response ids, never as text. Prefix and continuation together have at most
    `sampling.max_tokens`. At 100 % nothing is left to write, so every model has the rollouts' own accuracy.

    Args:
        rollouts: one per prompt, so that intervals are over prompts.
        context: tokens the model can attend to, at least those of each prompt and `sampling.max_tokens`; None where it
            has no limit.
    """
    right = []
    for point in range(POINTS):
        ended = rollouts if point == BINS else _continued(engine, rollouts, point / BINS, sampling, seed, context)
        right.append([int(item.correct) for item in grade(benchmark, ended, decode)])
        progress(point + 1, POINTS)
    benchmark.grader.close()
    return curve_of(right)


def curve_of(right: list[list[int]]) -> Curve:
    """The curve of 1 or 0 for each prefix and prompt."""
    intervals = [mean_interval([float(one) for one in row]) for row in right]
    accuracy, low, high = ([interval[part] for interval in intervals] for part in range(3))
    return Curve(accuracy, low, high, right)


def _continued(
    engine: Engine, rollouts: Sequence[Rollout], share: float, sampling: Sampling, seed: int, context: int | None
) -> list[Rollout]:
    """Rollouts that begin as those given, for `share` of their length, and end as `engine` has it."""
    sizes = [prefix_size(len(rollout.response_ids), share) for rollout in rollouts]
    ended: dict[int, Rollout] = {}
    for group in _groups(rollouts, sizes, sampling.max_tokens, context):
        chosen = [(rollouts[index], sizes[index]) for index in group]
        prompts = [Prompt(rollout.prompt_id, rollout.ids(size).tolist(), text="") for rollout, size in chosen]
        longest = sampling.max_tokens - min(size for _, size in chosen)
        made = engine.generate(
            prompts, replace(sampling, n=1, max_tokens=longest), seed=seed, stream=f"continue from {share:.0%}"
        )
        for index, (rollout, size), new in zip(group, chosen, made, strict=True):
            response = numpy.concatenate([rollout.response_ids[:size], new.response_ids])
            logprobs = numpy.concatenate([rollout.sampler_logprobs[:size], new.sampler_logprobs])
            ended[index] = replace(
                rollout,
                response_ids=response[: sampling.max_tokens],
                sampler_logprobs=logprobs[: sampling.max_tokens],
                finish_reason=new.finish_reason if len(response) <= sampling.max_tokens else "length",
            )
    return [ended[index] for index in range(len(rollouts))]


def _groups(rollouts: Sequence[Rollout], sizes: Sequence[int], max_tokens: int, context: int | None) -> list[list[int]]:
    """Rollouts that can be continued in one call: all are given as many tokens as the shortest prefix leaves, and with
    those the longest prompt and prefix must fit into the context."""
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(rollouts)), key=lambda index: sizes[index]):
        if not groups or (context is not None and len(rollouts[index].prompt_ids) + sizes[index] + room > context):
            groups.append([])
            room = max_tokens - sizes[index]
        groups[-1].append(index)
    return [sorted(group) for group in groups]
