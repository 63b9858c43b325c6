"""Records that flow between the stages: plain, ragged, engine-neutral. Tensors appear once, in `iwopd.models.batch`.

The one convention: ``logprobs[t] = log p(response_ids[t] | prompt_ids, response_ids[:t])``, in nats, indexed by
response token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem, rendered with the student's chat template.

    Attributes:
        id: unique within its dataset; part of every sample's random seed.
        ids: token ids, generation prompt included.
        text: the text those ids came from.
        answer: reference answer for grading; None where the dataset has none.
        row: the source row, untouched.
        teacher: name of the teacher that scores the answers; None for the one in `teacher`.
    """

    id: str
    ids: list[int]
    text: str
    answer: str | None = None
    row: dict[str, Any] = field(default_factory=dict[str, Any])
    teacher: str | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer the student wrote.

    Attributes:
        prompt_id: the `Prompt.id` it answers.
        prompt_ids: token ids of the prompt.
        response_ids: token ids of the response, end-of-sequence token included where there is one.
        sampler_logprobs: nats, one per response token, under the distribution that was sampled from (after
            temperature, top-k and top-p).
        finish_reason: "stop" at an end-of-sequence token, "length" when cut by `rollout.max_tokens`.
        sample: index among the samples of this prompt.
        policy_version: optimiser steps the student had taken when it wrote this.
    """

    prompt_id: str
    prompt_ids: list[int]
    response_ids: list[int]
    sampler_logprobs: list[float]
    finish_reason: FinishReason
    sample: int = 0
    policy_version: int = 0

    @property
    def name(self) -> str:
        """How messages refer to this rollout."""
        return f"{self.prompt_id}#{self.sample}"


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """A rollout with what was said about the tokens of its window ``[start, stop)``.

    Attributes:
        rollout: what was scored.
        start, stop: the window of response tokens that can have non-zero weight; the whole response for most schemes.
        teacher_logprobs: nats, ``stop - start`` of them.
        base_logprobs: nats, by the base model; only for ExOPD.
        trainer_logprobs: nats, recomputed by the student under training; only where the weighting needs the whole
            batch first, or the batch feeds several updates.
        teacher_hidden: the teacher's last hidden states ``[stop - start, hidden]`` in host memory; only for
            full-vocabulary losses, whose [tokens × vocabulary] log-probs are made from them chunk by chunk.
    """

    rollout: Rollout
    start: int
    stop: int
    teacher_logprobs: Sequence[float]
    trainer_logprobs: Sequence[float] | None = None
    base_logprobs: Sequence[float] | None = None
    teacher_hidden: Any | None = None
