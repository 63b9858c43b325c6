"""Stage 2: what the teacher, and where needed the student and its base, say about the same token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from iwopd.models.batch import Tokens, Window, collate
from iwopd.models.readouts import measured_against
from iwopd.models.sharding import is_sharded
from iwopd.models.shared_prompts import can_share
from iwopd.models.student import Student
from iwopd.numerics import Head
from iwopd.numerics.divergence import MEASURES
from iwopd.rollout.base import Progress, no_progress, part_of
from iwopd.scoring.base import Teacher
from iwopd.scoring.hf import in_token_batches
from iwopd.training.objective import Objective
from iwopd.types import SAMPLED, Logprobs, Rollout, ScoredRollout, Signal, as_logprobs


def score(
    teacher: Teacher,
    rollouts: Sequence[Rollout],
    window: Window,
    *,
    student: Student | None = None,
    base: Teacher | None = None,
    signal: Signal = SAMPLED,
    objective: Objective | None = None,
    progress: Progress = no_progress,
) -> list[ScoredRollout]:
    """Log-probs of each rollout's window, in the order given.

    Args:
        student: also record the trainer's own log-probs, where `Objective.needs_student_first` says so. Otherwise they
            come from the update's own forward pass.
        base: also record the log-probs of this model, which ExOPD measures the teacher's gain from.
        signal: what the teacher is to say of each token.
        objective: with a student, also record what its weighting asks for of both distributions.
    """
    passes = 1 + (base is not None) + (student is not None)
    scored = teacher.score(rollouts, window, signal=signal, progress=part_of(progress, 0, passes))
    if base is not None:
        references = base.score(rollouts, window, progress=part_of(progress, 1, passes))
        scored = [
            replace(record, base_logprobs=reference.teacher_logprobs)
            for record, reference in zip(scored, references, strict=True)
        ]
    if student is None:
        return scored
    own = part_of(progress, passes - 1, passes)
    if objective is not None and objective.weighting.measures:
        return _measured(student, scored, objective, teacher.heads() if signal.kind == "full" else {}, own)
    windows = [(record.start, record.stop) for record in scored]
    found = trainer_logprobs(student, rollouts, windows, own)
    return [replace(record, trainer_logprobs=logprobs) for record, logprobs in zip(scored, found, strict=True)]


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
            lambda tokens, _: [student.lm.token_logprobs(tokens)],
            progress,
            sharded=is_sharded(student.lm),
            share=student.share_prompts and can_share(student.lm),
        )
    return [as_logprobs(logprobs.float().numpy()) for (logprobs,) in own]


def _measured(
    student: Student,
    scored: Sequence[ScoredRollout],
    objective: Objective,
    heads: Mapping[str, Head],
    progress: Progress,
) -> list[ScoredRollout]:
    """Records with the student's log-probs and the measures that the weighting asks for, of one pass."""
    measures = {"logprobs": MEASURES["logprobs"], **objective.weight_measures()}

    def function(tokens: Tokens, group: Sequence[int]) -> Sequence[Tensor]:
        batch = collate(
            [scored[index] for index in group], group, device=student.device, share=tokens.prompts is not None
        )
        found = student.lm(tokens, measured_against(objective.signals(batch, heads), {}, measures))
        return [found[name] for name in measures]

    student.model.eval()
    rollouts, windows = [each.rollout for each in scored], [(each.start, each.stop) for each in scored]
    with torch.no_grad():
        rows = in_token_batches(
            rollouts,
            windows,
            student.micro_batch_tokens,
            student.device,
            function,
            progress,
            sharded=is_sharded(student.lm),
            share=student.share_prompts and can_share(student.lm),
        )
    named = [dict(zip(measures, (as_logprobs(row.float().numpy()) for row in each), strict=True)) for each in rows]
    return [
        replace(record, trainer_logprobs=found.pop("logprobs"), trainer_measures=found)
        for record, found in zip(scored, named, strict=True)
    ]
