"""A teacher without a model, for tests of the code around teachers, ours and users'."""

from collections.abc import Sequence

import numpy

from iwopd.models.batch import Window
from iwopd.rollout.base import Progress, no_progress
from iwopd.scoring.base import Teacher
from iwopd.types import SAMPLED, Rollout, ScoredRollout, Signal


class FakeTeacher(Teacher):
    """Gives every token the same log-prob (nats); has no distribution, so no signal beyond sampled log-probs."""

    def __init__(self, logprob: float = -1.0):
        self.logprob = logprob
        self.scored = 0
        self.closed = False

    def score(
        self, rollouts: Sequence[Rollout], window: Window, *, signal: Signal = SAMPLED, progress: Progress = no_progress
    ) -> list[ScoredRollout]:
        """See `Teacher.score`."""
        if signal != SAMPLED:
            raise ValueError("a fake teacher has no distribution")
        windows = [window(len(rollout.response_ids)) for rollout in rollouts]
        self.scored += len(rollouts)
        progress(len(rollouts), len(rollouts))
        return [
            ScoredRollout(rollout, start, stop, numpy.full(stop - start, self.logprob, numpy.float32))
            for rollout, (start, stop) in zip(rollouts, windows, strict=True)
        ]

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
