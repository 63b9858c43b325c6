"""Records that flow between the stages: ragged, engine-neutral arrays. Tensors appear once, in `iwopd.models.batch`.

The one convention: ``logprobs[t] = log p(response_ids[t] | prompt_ids, response_ids[:t])``, in nats, indexed by
response token. Token ids are int32 arrays and log-probs float32 arrays, made by `as_ids` and `as_logprobs`: 4 bytes a
number where a list takes 8 for its place and up to 32 more for the number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy
import numpy.typing

FinishReason = Literal["stop", "length"]
SignalKind = Literal["sampled", "top_k", "full"]
Ids = numpy.typing.NDArray[numpy.int32]
Logprobs = numpy.typing.NDArray[numpy.float32]


def as_ids(values: "Sequence[int] | numpy.typing.NDArray[numpy.integer]") -> Ids:
    """Token ids for a record, copied.

    Raises:
        ValueError: not one row of whole numbers from 0 to 2³¹ − 1.
    """
    found = numpy.asarray(values)
    if found.size == 0 and found.ndim == 1:
        return numpy.zeros(0, numpy.int32)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= 2**31:
        raise ValueError(f"token ids must be one row of whole numbers from 0 to 2**31 - 1, not {_described(found)}")
    return found.astype(numpy.int32)


def as_logprobs(values: "Sequence[float] | numpy.typing.NDArray[numpy.floating]") -> Logprobs:
    """Log-probs (nats) for a record, copied and rounded to float32. Whether they are finite is for stages to say, which
    can name what is wrong.

    Raises:
        ValueError: not one row of numbers.
    """
    found = numpy.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "fiu":
        raise ValueError(f"log-probs must be one row of numbers, not {_described(found)}")
    with numpy.errstate(over="ignore"):
        return found.astype(numpy.float32)


def _described(found: "numpy.typing.NDArray[Any]") -> str:
    first = f" that begin with {found.flat[0]}" if found.size else ""
    return f"values of shape {list(found.shape)} and dtype {found.dtype}{first}"


class Tokenizer(Protocol):
    """As much of transformers' tokenizers as is used."""

    eos_token_id: int
    sep_token_id: int | None
    chat_template: str | dict[str, str] | None
    apply_chat_template: Callable[..., str]

    def __len__(self) -> int: ...
    def get_vocab(self) -> dict[str, int]: ...
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, token_ids: Sequence[int] | Ids, *, skip_special_tokens: bool = False) -> str: ...
    def save_pretrained(self, save_directory: Path) -> object: ...


@dataclass(frozen=True, slots=True)
class Signal:
    """What a teacher is asked to say of each token.

    Attributes:
        kind: "sampled", the log-prob of the token itself; "top_k", also the k likeliest tokens and their log-probs;
            "full", instead of these the last hidden states, which with the head give the whole distribution.
        k: of "top_k"; 0 for the others.
    """

    kind: SignalKind = "sampled"
    k: int = 0

    def bytes_per_token(self, state: int = 0) -> int:
        """What a record keeps of it for each token, beside the log-prob of the token itself.

        Args:
            state: bytes of one hidden state.
        """
        return {"sampled": 0, "top_k": 8 * self.k, "full": state}[self.kind]


SAMPLED = Signal()


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


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One answer the student wrote. Two are equal where all their fields are, arrays element by element.

    Attributes:
        prompt_id: the `Prompt.id` it answers.
        prompt_ids: int32, token ids of the prompt.
        response_ids: int32, token ids of the response, end-of-sequence token included where there is one.
        sampler_logprobs: float32, nats, one per response token, under the distribution that was sampled from (after
            temperature, top-k and top-p).
        finish_reason: "stop" at an end-of-sequence token, "length" when cut by `rollout.max_tokens`.
        sample: index among the samples of this prompt.
        policy_version: optimiser steps the student had taken when it wrote this.

    Raises:
        ValueError: ids or log-probs are no such arrays, or do not count the same.
    """

    prompt_id: str
    prompt_ids: Ids
    response_ids: Ids
    sampler_logprobs: Logprobs
    finish_reason: FinishReason
    sample: int = 0
    policy_version: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_ids", "response_ids"):
            _check_array(self.name, name, getattr(self, name), numpy.int32)
        _check_array(self.name, "sampler_logprobs", self.sampler_logprobs, numpy.float32, len(self.response_ids))

    @property
    def name(self) -> str:
        """How messages refer to this rollout."""
        return f"{self.prompt_id}#{self.sample}"

    def ids(self, stop: int | None = None) -> Ids:
        """Token ids of the prompt and the response, or of its first `stop` tokens."""
        return numpy.concatenate([self.prompt_ids, self.response_ids[:stop]])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rollout) and _equal(self, other)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRollout:
    """A rollout with what was said about the tokens of its window ``[start, stop)``. Two are equal where all their
    fields are, hidden states aside.

    Attributes:
        rollout: what was scored.
        start, stop: the window of response tokens that can have non-zero weight; the whole response for most schemes.
        teacher_logprobs: float32, nats, ``stop - start`` of them.
        base_logprobs: likewise, by the base model; only for ExOPD.
        trainer_logprobs: likewise, recomputed by the student under training; only where the weighting needs the whole
            batch first, or the batch feeds several updates.
        trainer_measures: likewise of what the student's own pass measured of both distributions, by name; only where
            the weighting asks for it and needs the whole batch first.
        teacher_topk_ids, teacher_topk_logprobs: the teacher's k likeliest tokens ``[stop - start, k]``, int32,
            likeliest first, and their log-probs, float32, nats, −inf for places where it gave none; only for signal
            "top_k".
        teacher_hidden: the teacher's last hidden states ``[stop - start, hidden]`` in host memory; only for signal
            "full": the [tokens × vocabulary] log-probs are made from them chunk by chunk.
        teacher: which of several teachers scored it; "" where there is one.

    Raises:
        ValueError: the log-probs are no such arrays, or do not count as many as the window's tokens.
    """

    rollout: Rollout
    start: int
    stop: int
    teacher_logprobs: Logprobs
    trainer_logprobs: Logprobs | None = None
    base_logprobs: Logprobs | None = None
    trainer_measures: Mapping[str, Logprobs] | None = field(default=None, compare=False)
    teacher_topk_ids: "numpy.typing.NDArray[numpy.int32] | None" = None
    teacher_topk_logprobs: "numpy.typing.NDArray[numpy.float32] | None" = None
    teacher_hidden: Any | None = field(default=None, compare=False)
    teacher: str = ""

    def __post_init__(self) -> None:
        count = self.stop - self.start
        for name in ("teacher_logprobs", "trainer_logprobs", "base_logprobs"):
            values = getattr(self, name)
            if values is not None or name == "teacher_logprobs":
                _check_array(self.rollout.name, name, values, numpy.float32, count)
        if self.teacher_topk_ids is not None or self.teacher_topk_logprobs is not None:
            _check_array(self.rollout.name, "teacher_topk_ids", self.teacher_topk_ids, numpy.int32, count, 2)
            _check_array(
                self.rollout.name, "teacher_topk_logprobs", self.teacher_topk_logprobs, numpy.float32, count, 2
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScoredRollout) and _equal(self, other)


def _equal(one: Rollout | ScoredRollout, other: Rollout | ScoredRollout) -> bool:
    """Field by field. What dataclasses make compares arrays as tuples do, which is an error."""
    pairs = [(getattr(one, item.name), getattr(other, item.name)) for item in fields(one) if item.compare]
    return all(
        numpy.array_equal(*pair) if any(isinstance(value, numpy.ndarray) for value in pair) else pair[0] == pair[1]
        for pair in pairs
    )


def _check_array(rollout: str, name: str, values: object, dtype: type, count: int | None = None, axes: int = 1) -> None:
    found: numpy.typing.NDArray[Any] | None = values if isinstance(values, numpy.ndarray) else None  # pyright: ignore[reportUnknownVariableType]
    if found is None or found.dtype != dtype or found.ndim != axes:
        if axes > 1:
            raise ValueError(f"rollout {rollout}: {name} is no {dtype.__name__} array of {axes} axes")
        maker = "as_ids" if dtype is numpy.int32 else "as_logprobs"
        raise ValueError(f"rollout {rollout}: {name} is no {dtype.__name__} array; make it with iwopd.types.{maker}")
    if count is not None and len(found) != count:
        raise ValueError(f"rollout {rollout}: {len(found)} {name} for {count} tokens")
