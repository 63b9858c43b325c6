"""Responses that end while others are still being written, by what the teacher said of them so far."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy
import numpy.typing

from iwopd.config import RolloutConfig
from iwopd.rollout.base import Engine, Finished, Progress, Sampling, ignore_rollout, no_progress
from iwopd.scoring.base import Teacher
from iwopd.seeding import derive_seed
from iwopd.types import Prompt, Rollout

if TYPE_CHECKING:
    from iwopd.vllm.transfer import WeightSource

RULES = ("drift", "agreement", "random")


class EarlyStop(Engine):
    """An engine that writes in pieces of `rollout.stop_every` tokens: after each, ⌈stop_keep · those under way⌉
    responses are continued, and the others end there with the reason "length".

    Continued are, by `rollout.stop_early`, those with the smallest mean |A_t| so far (drift: supervision is of no use
    where the two models have parted; after Prune-OPD, arXiv 2605.07804), those with the largest in the last piece
    (agreement: there is nothing left to learn where a teacher follows; after KAT, arXiv 2606.09471), or any (random: a
    control that generates as much). A_t is of the engine's log-probs.

    Args:
        engine: writes the pieces.
        teacher: not asked by random.
        settings: of the rollouts.
    """

    def __init__(self, engine: Engine, teacher: Teacher, settings: RolloutConfig):
        self.engine = engine
        self.teacher = teacher
        self.settings = settings

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        stream: int | str,
        progress: Progress = no_progress,
        finished: Finished = ignore_rollout,
    ) -> list[Rollout]:
        """See `Engine.generate`; all are finished at the end."""
        every, longest = self.settings.stop_every, sampling.max_tokens
        first = replace(sampling, max_tokens=min(every, longest))
        rollouts = self.engine.generate(prompts, first, seed=seed, stream=stream, progress=progress)
        drift = numpy.zeros(len(rollouts))  # Σ|A_t| of each response so far, nats
        for written in range(every, longest, every):
            running = [
                index
                for index, rollout in enumerate(rollouts)
                if len(rollout.response_ids) == written and rollout.finish_reason == "length"
            ]
            if not running:
                break
            kept = self._continued(rollouts, running, drift, derive_seed(seed, "stop", stream, written))
            rest = self.engine.generate(
                [Prompt(rollouts[index].name, rollouts[index].ids().tolist(), "") for index in kept],
                replace(sampling, n=1, max_tokens=min(every, longest - written)),
                seed=seed,
                stream=f"{stream}/{written}",
                progress=progress,
            )
            for index, more in zip(kept, rest, strict=True):
                rollouts[index] = _joined(rollouts[index], more)
        for rollout in rollouts:
            finished(rollout)
        return rollouts

    def _continued(
        self, rollouts: Sequence[Rollout], running: list[int], drift: "numpy.typing.NDArray[numpy.float64]", seed: int
    ) -> list[int]:
        """Those of `running` that go on; `drift` is brought up to date."""
        asked = [rollouts[index] for index in running]
        if self.settings.stop_early == "random":
            ranks = [float(derive_seed(seed, each.prompt_id, each.sample)) for each in asked]
        else:
            last = self._disagreement(asked)
            drift[running] += last
            ranks = list(drift[running] if self.settings.stop_early == "drift" else -last)
        order = sorted(range(len(running)), key=lambda place: (ranks[place], place))
        return sorted(running[place] for place in order[: math.ceil(self.settings.stop_keep * len(running))])

    def _disagreement(self, rollouts: Sequence[Rollout]) -> "numpy.typing.NDArray[numpy.float64]":
        """Σ|A_t| over the last piece of each, nats."""
        self.engine.sleep()  # the memory is the teacher's now
        scored = self.teacher.score(rollouts, lambda length: (length - self.settings.stop_every, length))
        gaps = [each.teacher_logprobs - each.rollout.sampler_logprobs[each.start :] for each in scored]
        return numpy.array([numpy.abs(each).sum() for each in gaps], dtype=numpy.float64)

    def sync_weights(self, student: "WeightSource", version: int) -> None:
        """See `Engine.sync_weights`."""
        self.engine.sync_weights(student, version)


def _joined(rollout: Rollout, rest: Rollout) -> Rollout:
    return replace(
        rollout,
        response_ids=numpy.concatenate([rollout.response_ids, rest.response_ids]),
        sampler_logprobs=numpy.concatenate([rollout.sampler_logprobs, rest.sampler_logprobs]),
        finish_reason=rest.finish_reason,
    )
