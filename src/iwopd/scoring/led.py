"""A teacher that one process speaks to for all, such as servers."""

from collections.abc import Callable, Sequence

from iwopd.models.batch import Window
from iwopd.parallel import world
from iwopd.rollout.base import Progress, no_progress
from iwopd.scoring.base import Teacher
from iwopd.types import SAMPLED, Rollout, ScoredRollout, Signal


class LedTeacher(Teacher):
    """See `Teacher`.

    Args:
        make: called on the leader.
    """

    def __init__(self, make: Callable[[], Teacher]):
        made = list[Teacher]()
        world().alone(lambda: made.append(make()))
        self.own = made[0] if made else None
        self.concurrent = self.own is not None and self.own.concurrent

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
