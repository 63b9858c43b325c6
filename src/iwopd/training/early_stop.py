"""Responses that end while others are still being written, by what the teacher said of them so far."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy

from iwopd.config import RolloutConfig
from iwopd.rollout.base import Engine, Progress, Sampling, no_progress
from iwopd.scoring.base import Teacher
from iwopd.seeding import derive_seed
from iwopd.types import Prompt, Rollout

RULES = ("drift", "agreement", "random")


def generate_some(
    engine: Engine,
    teacher: Teacher,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    settings: RolloutConfig,
    *,
    seed: int,
    stream: int,
    progress: Progress = no_progress,
) -> list[Rollout]:
    """`Engine.generate` in pieces of `rollout.stop_every` tokens: after each, only ⌈stop_keep · those under way⌉
    responses are continued, and the others end there with the reason "length".

    Continued are, by `rollout.stop_early`, those with the smallest mean |A_t| so far (drift: supervision is of no use
    where the two models have parted; after Prune-OPD, arXiv 2605.07804), those with the largest in the last piece
    (agreement: there is nothing left to learn where a teacher follows; after KAT, arXiv 2606.09471), or any (random: a
    control that generates as much). A_t is of the engine's log-probs.
    """
    every, longest = settings.stop_every, sampling.max_tokens
    first = replace(sampling, max_tokens=min(every, longest))
    rollouts = engine.generate(prompts, first, seed=seed, stream=stream, progress=progress)
    disagreement = numpy.zeros(len(rollouts))  # Σ|A_t| of each response so far, nats
    for written in range(every, longest, every):
        running = [index for index, rollout in enumerate(rollouts) if len(rollout.response_ids) == written]
        running = [index for index in running if rollouts[index].finish_reason == "length"]
        if not running:
            break
        ranks: dict[int, float]
        if settings.stop_early == "random":
            given = [(index, rollouts[index].prompt_id, rollouts[index].sample) for index in running]
            ranks = {index: derive_seed(seed, "stop", stream, written, *who) for index, *who in given}
        else:
            engine.sleep()
            last = _disagreement(
                teacher, [rollouts[index] for index in running], lambda length: (length - every, length)
            )
            disagreement[running] += last
            drifts = settings.stop_early == "drift"
            ranks = dict(zip(running, disagreement[running] if drifts else -last, strict=True))
        kept = sorted(running, key=lambda index: (ranks[index], index))[: math.ceil(settings.stop_keep * len(running))]
        kept.sort()
        rest = engine.generate(
            [_continued(rollouts[index]) for index in kept],
            replace(sampling, n=1, max_tokens=min(every, longest - written)),
            seed=seed,
            stream=f"{stream}/{written}",
            progress=progress,
        )
        for index, more in zip(kept, rest, strict=True):
            rollouts[index] = _joined(rollouts[index], more)
    return rollouts


def _disagreement(
    teacher: Teacher, rollouts: Sequence[Rollout], window: Callable[[int], tuple[int, int]]
) -> "numpy.typing.NDArray[numpy.float64]":
    """Σ|A_t| over each window, nats."""
    scored = teacher.score(rollouts, window)
    return numpy.array(
        [numpy.abs(each.teacher_logprobs - each.rollout.sampler_logprobs[each.start :]).sum() for each in scored],
        dtype=numpy.float64,
    )


def _continued(rollout: Rollout) -> Prompt:
    """A prompt whose answer is the rest of the response."""
    return Prompt(rollout.name, rollout.ids().tolist(), "")


def _joined(rollout: Rollout, rest: Rollout) -> Rollout:
    return replace(
        rollout,
        response_ids=numpy.concatenate([rollout.response_ids, rest.response_ids]),
        sampler_logprobs=numpy.concatenate([rollout.sampler_logprobs, rest.sampler_logprobs]),
        finish_reason=rest.finish_reason,
    )
