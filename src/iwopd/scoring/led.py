"""A teacher that one process speaks to for all, such as servers."""

from collections.abc import Callable, Sequence

import torch

from iwopd.models.batch import Window
from iwopd.numerics.logprobs import Head
from iwopd.parallel import world
from iwopd.rollout.base import Progress, no_progress
from iwopd.scoring.base import Teacher
from iwopd.scoring.vllm_states import LmHead
from iwopd.types import SAMPLED, Rollout, ScoredRollout, Signal


class LedTeacher(Teacher):
    """See `Teacher`.

    Args:
        make: called on the leader.
        device: where each process wants the teacher's head; None for a teacher that has none.
    """

    def __init__(self, make: Callable[[], Teacher], device: torch.device | None = None):
        made = list[Teacher]()
        world().alone(lambda: made.append(make()))
        self.own = made[0] if made else None
        self.concurrent = self.own is not None and self.own.concurrent
        self._head = world().alone(self._on_cpu).to(device) if device is not None else None

    def _on_cpu(self) -> LmHead:
        """The leader's, as it is sent to the others."""
        head = self.own.head() if self.own is not None else None
        assert isinstance(head, LmHead), "such teachers have it from files"
        return head.to(torch.device("cpu"))

    def head(self) -> Head:
        """See `Teacher.head`."""
        return self._head if self._head is not None else super().head()

    def score(
        self,
        rollouts: Sequence[Rollout],
        window: Window,
        *,
        signal: Signal = SAMPLED,
        progress: Progress = no_progress,
    ) -> list[ScoredRollout]:
        """See `Teacher.score`."""

        def score() -> list[ScoredRollout]:
            assert self.own is not None, "the leader has it"
            return self.own.score(rollouts, window, signal=signal, progress=progress)

        return world().alone(score)

    def expect(self, rollout: Rollout, window: Window, signal: Signal = SAMPLED) -> None:
        """See `Teacher.expect`: of those that the leader has answered, or its servers."""
        if self.own is not None:
            self.own.expect(rollout, window, signal)

    def close(self) -> None:
        """See `Teacher.close`."""
        if self.own is not None:
            self.own.close()
