"""A teacher that reads prompts of its own (`teacher.prompt_template`) before the student's responses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from iwopd.models.batch import Window
from iwopd.models.student import Student
from iwopd.numerics.logprobs import Head
from iwopd.rollout.base import Progress, no_progress
from iwopd.scoring.base import Teacher
from iwopd.types import SAMPLED, Rollout, ScoredRollout, Signal


class PromptedTeacher(Teacher):
    """Gives `teacher` each response after the prompt that the record has for it; records come back with the student's.

    Args:
        teacher: of any kind.
    """

    def __init__(self, teacher: Teacher):
        self.teacher = teacher
        # By identity: a teacher recognises a rollout that it expects as the object it was given.
        self._asked: dict[int, tuple[Rollout, Rollout]] = {}
        self.concurrent = teacher.concurrent

    def score(
        self, rollouts: Sequence[Rollout], window: Window, *, signal: Signal = SAMPLED, progress: Progress = no_progress
    ) -> list[ScoredRollout]:
        """See `Teacher.score`."""
        asked = [self._for(rollout) for rollout in rollouts]
        try:
            scored = self.teacher.score(asked, window, signal=signal, progress=progress)
        finally:
            for rollout in rollouts:
                self._asked.pop(id(rollout), None)
        return [replace(record, rollout=rollout) for record, rollout in zip(scored, rollouts, strict=True)]

    def expect(self, rollout: Rollout, window: Window, signal: Signal = SAMPLED) -> None:
        """See `Teacher.expect`."""
        self.teacher.expect(self._for(rollout), window, signal)

    def head(self) -> Head:
        """See `Teacher.head`."""
        return self.teacher.head()

    def heads(self) -> dict[str, Head]:
        """See `Teacher.heads`."""
        return self.teacher.heads()

    def follow(self, student: Student) -> None:
        """See `Teacher.follow`."""
        self.teacher.follow(student)

    def save(self, folder: Path) -> None:
        """See `Teacher.save`."""
        self.teacher.save(folder)

    def close(self) -> None:
        """See `Teacher.close`."""
        self.teacher.close()

    def _for(self, rollout: Rollout) -> Rollout:
        _, asked = self._asked.setdefault(id(rollout), (rollout, rollout.as_taught))
        return asked
