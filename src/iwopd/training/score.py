"""Stage 2: what the teacher, and where needed the student and its base, say about the same token ids."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from iwopd.models.batch import Window
from iwopd.models.sharding import is_sharded
from iwopd.models.student import Student
from iwopd.rollout.base import Progress, no_progress, part_of
from iwopd.scoring.base import Teacher
from iwopd.scoring.hf import in_token_batches
from iwopd.types import Logprobs, Rollout, ScoredRollout, as_logprobs


def score(
    teacher: Teacher,
    rollouts: Sequence[Rollout],
    window: Window,
    *,
    student: Student | None = None,
    base: Teacher | None = None,
    hidden: bool = False,
    progress: Progress = no_progress,
) -> list[ScoredRollout]:
    """Log-probs of each rollout's window, in the order given.

    Args:
        student: also record the trainer's own log-probs, where `Objective.needs_student_first` says so. Otherwise they
            come from the update's own forward pass.
        base: also record the log-probs of this model, which ExOPD measures the teacher's gain from.
        hidden: keep the teacher's hidden states, for full-vocabulary losses.
    """
    passes = 1 + (base is not None) + (student is not None)
    scored = teacher.score(rollouts, window, hidden=hidden, progress=part_of(progress, 0, passes))
    if base is not None:
        references = base.score(rollouts, window, progress=part_of(progress, 1, passes))
        scored = [
            replace(record, base_logprobs=reference.teacher_logprobs)
            for record, reference in zip(scored, references, strict=True)
        ]
    if student is None:
        return scored
    windows = [(record.start, record.stop) for record in scored]
    own = trainer_logprobs(student, rollouts, windows, part_of(progress, passes - 1, passes))
    return [replace(record, trainer_logprobs=logprobs) for record, logprobs in zip(scored, own, strict=True)]


def trainer_logprobs(
    student: Student,
    rollouts: Sequence[Rollout],
    windows: Sequence[tuple[int, int]],
    progress: Progress = no_progress,
) -> list[Logprobs]:
    """The student's own log-probs (nats) of each rollout's window ``[start, stop)``, recomputed by the trainer."""
    student.model.eval()
    with torch.no_grad():
        own = in_token_batches(
            rollouts,
            windows,
            student.micro_batch_tokens,
            student.device,
            lambda tokens: [student.lm.token_logprobs(tokens)],
            progress,
            sharded=is_sharded(student.lm),
        )
    return [as_logprobs(logprobs.float().numpy()) for (logprobs,) in own]
