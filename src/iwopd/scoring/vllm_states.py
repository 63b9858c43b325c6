"""A teacher in vLLM that gives hidden states: a pooling engine, whose head is at the student's side."""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from iwopd.errors import NonFiniteError
from iwopd.models.batch import Window
from iwopd.models.language_model import LanguageModel, chunk_tokens
from iwopd.numerics import chunked_token_logprobs, chunked_top_k
from iwopd.numerics.logprobs import Head
from iwopd.rollout.base import Progress, no_progress
from iwopd.scoring.base import Teacher
from iwopd.scoring.hf import record_fields
from iwopd.types import SAMPLED, Ids, Rollout, ScoredRollout, Signal, as_logprobs
from iwopd.vllm.in_process import InProcess


class LmHead:
    """A model's head without the rest of it; frozen.

    Args:
        lm: what it is taken from, which may be given up afterwards.
        device: the student's.
    """

    def __init__(self, lm: LanguageModel, device: torch.device):
        self.matrix = copy.deepcopy(lm.output_embeddings).requires_grad_(False).to(device)
        self.logits, self.device = lm.logits, device
        self.chunk = chunk_tokens(device.type, lm.vocabulary)

    @property
    def dtype(self) -> torch.dtype:
        """Of the states that it takes."""
        return self.matrix.weight.dtype

    @property
    def width(self) -> int:
        """Of the states that it takes."""
        return self.matrix.weight.shape[1]

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        made = copy.copy(self)
        made.matrix, made.device = copy.deepcopy(self.matrix).to(device), device
        made.chunk = chunk_tokens(device.type, self.matrix.weight.shape[0])
        return made

    def __call__(self, states: Tensor) -> Tensor:
        """[tokens, hidden] to logits [tokens, vocabulary]."""
        return self.logits(self.matrix(states.to(self.dtype)))


def ids_read(rollout: Rollout, stop: int) -> Ids:
    """What the teacher reads: the last token of a window is predicted, never read."""
    return rollout.ids(stop)[:-1]


@torch.no_grad()
def record_of_states(
    rollout: Rollout, window: tuple[int, int], states: Tensor, signal: Signal, head: LmHead
) -> ScoredRollout:
    """What a signal says of a window.

    Args:
        states: [tokens, hidden], that predict the window's tokens.

    Raises:
        NonFiniteError: a log-prob is NaN or infinite; names the rollout.
    """
    start, stop = window
    states = states.to(head.dtype)
    here, targets = (
        states.to(head.device),
        torch.from_numpy(rollout.response_ids[start:stop]).long().to(head.device),
    )
    if signal.kind == "top_k":
        logprobs, *more = chunked_top_k(here, targets, head, head.chunk, signal.k)
    else:
        logprobs = chunked_token_logprobs(here, targets, head, head.chunk)
        more = [states] if signal.kind == "full" else []
    if not logprobs.isfinite().all():
        raise NonFiniteError(
            f"the teacher's log-probs of rollout {rollout.name} are NaN or infinite; its weights are damaged "
            "or overflow: try teacher.dtype=float32"
        )
    fields = record_fields(signal, [each.cpu() for each in more])
    return ScoredRollout(rollout, start, stop, as_logprobs(logprobs.float().cpu().numpy()), **fields)


class VllmStatesTeacher(Teacher):
    """See `Teacher`.

    Args:
        vllm: an engine whose settings say `pooling`.
        head: the teacher's, from its files.
    """

    def __init__(self, vllm: InProcess, head: LmHead):
        self.vllm = vllm
        self._head = head

    def score(
        self, rollouts: Sequence[Rollout], window: Window, *, signal: Signal = SAMPLED, progress: Progress = no_progress
    ) -> list[ScoredRollout]:
        """See `Teacher.score`.

        Raises:
            NonFiniteError: a log-prob is NaN or infinite; names the rollout.
        """
        windows = [window(len(rollout.response_ids)) for rollout in rollouts]
        prompts = [ids_read(rollout, stop).tolist() for rollout, (_, stop) in zip(rollouts, windows, strict=True)]
        found = list[ScoredRollout]()
        for rollout, bounds, whole in zip(rollouts, windows, self.vllm.hidden_states(prompts), strict=True):
            start, stop = bounds
            found.append(record_of_states(rollout, bounds, whole[len(whole) - (stop - start) :], signal, self._head))
            progress(len(found), len(rollouts))
        return found

    def head(self) -> Head:
        """See `Teacher.head`."""
        return self._head

    def close(self) -> None:
        """Shut the engine down."""
        self.vllm.close()
