"""A few responses, token by token: what the teacher thinks of each token, and what the weighting makes of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from iwopd.evaluation.evaluate import Graded
from iwopd.models.student import Student
from iwopd.scoring.base import Teacher
from iwopd.seeding import derive_seed
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.types import SAMPLED, Logprobs, ScoredRollout, Tokenizer

DIGITS = 5  # of the floats in samples.jsonl


def sample_rows(
    graded: Sequence[Graded],
    teacher: Teacher,
    student: Student,
    objective: Objective,
    *,
    progress: float,
    tokenizer: Tokenizer,
    base: Teacher | None = None,
) -> list[dict[str, Any]]:
    """One row per response, scored whole, whatever the scheme's window: ``student_logprobs`` (the trainer's),
    ``teacher_logprobs`` and ``advantages`` (nats), and ``weights``, count from token ``start``, the first. Weights of a
    scheme that needs the whole batch are made from these few alone; ``progress`` is what an annealed one saw."""
    if not graded:
        return []
    rollouts = [item.rollout for item in graded]
    scored = score(
        teacher,
        rollouts,
        lambda length: (0, length),
        student=student,
        base=base,
        signal=objective.signal if objective.weighting.measures else SAMPLED,
        objective=objective,
    )
    seeds = [derive_seed("samples", rollout.name) for rollout in rollouts]
    own = replace(objective, student_logprobs="trainer")
    weights, advantages = own.of_whole_batch(scored, seeds, progress)
    return [
        _row(item, record, progress, tokenizer)
        | {"advantages": _rounded(own_advantages), "weights": _rounded(own_weights)}
        for item, record, own_weights, own_advantages in zip(graded, scored, weights, advantages, strict=True)
    ]


def _row(item: Graded, record: ScoredRollout, progress: float, tokenizer: Tokenizer) -> dict[str, Any]:
    rollout, own_logprobs = item.rollout, record.trainer_logprobs
    return {
        "prompt_id": rollout.prompt_id,
        "sample": rollout.sample,
        "prompt": item.prompt.text,
        "response": item.text,
        "answer": item.prompt.answer,
        "correct": item.correct,
        "finish_reason": rollout.finish_reason,
        "tokens": [tokenizer.decode([token]) for token in rollout.response_ids.tolist()],
        "sampler_logprobs": _rounded(rollout.sampler_logprobs),
        "start": record.start,
        "progress": progress,
        "student_logprobs": [] if own_logprobs is None else _rounded(own_logprobs),
        "teacher_logprobs": _rounded(record.teacher_logprobs),
    }


def _rounded(values: Logprobs | Tensor) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]
