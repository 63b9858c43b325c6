"""Several teachers, such as one for maths and one for code: a problem's `teacher` says which scores its answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from iwopd.models.batch import Window
from iwopd.models.student import Student
from iwopd.numerics.logprobs import Head
from iwopd.rollout.base import Progress, no_progress
from iwopd.scoring.base import Teacher
from iwopd.types import SAMPLED, Rollout, ScoredRollout, Signal


class PromptRef(Protocol):
    """The part of `iwopd.types.Prompt` that says who scores."""

    @property
    def id(self) -> str: ...

    @property
    def teacher(self) -> str | None: ...


class TeacherRouter(Teacher):
    """See `Teacher`.

    Args:
        teachers: by name.
        default: the name of the one for prompts that name none, benchmarks' among them.
        prompts: whose `teacher`, where there is one, is a name of `teachers`.

    Raises:
        KeyError: a prompt names another.
    """

    def __init__(self, teachers: Mapping[str, Teacher], default: str, prompts: Sequence[PromptRef]):
        self.teachers = teachers
        self.concurrent = all(teacher.concurrent for teacher in teachers.values())
        self._default = teachers[default]
        self._of = {prompt.id: teachers[prompt.teacher] for prompt in prompts if prompt.teacher is not None}

    def score(
        self, rollouts: Sequence[Rollout], window: Window, *, signal: Signal = SAMPLED, progress: Progress = no_progress
    ) -> list[ScoredRollout]:
        """See `Teacher.score`. One teacher after the other, so that those in host memory take turns on the GPU."""
        found: dict[int, ScoredRollout] = {}
        for name, teacher in self.teachers.items():
            chosen = [index for index, rollout in enumerate(rollouts) if self._for(rollout) is teacher]
            if not chosen:
                continue
            scored = teacher.score(
                [rollouts[index] for index in chosen],
                window,
                signal=signal,
                progress=_after(found.values(), len(rollouts), progress),
            )
            found |= zip(chosen, (replace(record, teacher=name) for record in scored), strict=True)
        return [found[index] for index in range(len(rollouts))]

    def expect(self, rollout: Rollout, window: Window, signal: Signal = SAMPLED) -> None:
        """See `Teacher.expect`."""
        self._for(rollout).expect(rollout, window, signal)

    def heads(self) -> dict[str, Head]:
        """See `Teacher.heads`."""
        return {name: teacher.head() for name, teacher in self.teachers.items()}

    def follow(self, student: Student) -> None:
        """See `Teacher.follow`."""
        for teacher in self.teachers.values():
            teacher.follow(student)

    def save(self, folder: Path) -> None:
        """See `Teacher.save`."""
        for teacher in self.teachers.values():
            teacher.save(folder)

    def close(self) -> None:
        """See `Teacher.close`."""
        for teacher in self.teachers.values():
            teacher.close()

    def _for(self, rollout: Rollout) -> Teacher:
        return self._of.get(rollout.prompt_id, self._default)


def _after(scored: Collection[ScoredRollout], total: int, progress: Progress) -> Progress:
    """For one teacher, after those that have `scored` already. Of the teachers to come the tokens are not counted yet:
    they are taken to have as many for each response."""
    done_before = len(scored)
    tokens_before = sum(len(record.rollout.prompt_ids) + record.stop for record in scored)

    def tell(done: int, own: int, tokens: int = 0, most: int = 0, /) -> None:
        known = done_before + own
        progress(done_before + done, total, tokens_before + tokens, (tokens_before + most) * total // max(1, known))

    return tell
