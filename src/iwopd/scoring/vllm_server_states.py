"""A teacher served by vLLM over HTTP that gives hidden states: pooling servers, whose head is at the student's side."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import httpx
import numpy
import torch
from torch import Tensor

from iwopd.errors import EngineError
from iwopd.models.batch import Window
from iwopd.numerics import chunked_token_logprobs
from iwopd.numerics.logprobs import Head
from iwopd.scoring.vllm_server import FIXED_PROMPT, VllmServerTeacher
from iwopd.scoring.vllm_states import LmHead, ids_read, record_of_states
from iwopd.types import Ids, Rollout, ScoredRollout, Signal
from iwopd.vllm.servers import POOLING, BadAnswer, Server, Servers

FLAGS = "--runner pooling --convert embed --pooler-config.task token_embed"
NORMALISED = 0.01  # how far the length of a normalised state, rounded to 16 bits, may be from 1


class VllmServerStatesTeacher(VllmServerTeacher):
    """See `Teacher`.

    Args:
        head: makes the teacher's, from its files; called once the servers serve the teacher and give states.
        servers, overlap, names: see `VllmServerTeacher`.

    Raises:
        EngineError: a server serves another model, or does not give its hidden states.
    """

    def __init__(self, servers: Servers, head: Callable[[], LmHead], overlap: bool = True, names: Sequence[str] = ()):
        self._make_head = head
        self._made: LmHead | None = None
        super().__init__(servers, overlap, names, Signal("full"))

    def head(self) -> Head:
        """See `Teacher.head`."""
        return self._own_head

    @property
    def _own_head(self) -> LmHead:
        self._made = self._made or self._make_head()
        return self._made

    @torch.no_grad()
    def _fixed_prompt(self, server: Server) -> list[float]:
        try:
            answer = self.servers.complete_on(server, _body(FIXED_PROMPT), _unread, POOLING)
            states = _states(len(FIXED_PROMPT), slice(None), answer)
            self._check_states(states)
        except (EngineError, BadAnswer) as error:
            if not server.alive:
                raise
            raise EngineError(
                f"{self.servers.key}={server.url}: {error.__cause__ or error}; loss.signal=full needs a server of the "
                f"teacher's hidden states: start it with {FLAGS}, or use loss.signal=top_k"
            ) from error
        head = self._own_head
        targets = torch.tensor(FIXED_PROMPT[1:], device=head.device)
        return chunked_token_logprobs(states[:-1].to(head.device, head.dtype), targets, head, head.chunk).tolist()

    def _check_states(self, states: Tensor) -> None:
        """Args: states: [tokens, hidden].

        Raises:
            BadAnswer: they are not what the teacher's head takes.
        """
        lengths = states.float().norm(dim=-1)
        if ((lengths - 1).abs() < NORMALISED).all():
            raise BadAnswer("hidden states normalised to length 1, which no head can read")
        if states.shape[1] != self._own_head.width:
            raise BadAnswer(f"hidden states of width {states.shape[1]}, and the teacher's have {self._own_head.width}")

    def _submit(self, rollout: Rollout, window: Window, signal: Signal) -> "Future[Any]":
        start, stop = window(len(rollout.response_ids))
        ids = ids_read(rollout, stop)
        read = partial(_states, len(ids), slice(len(ids) - (stop - start), len(ids)))
        return self.servers.submit(_body(ids, self._own_head.dtype), len(ids), read, POOLING)

    def _record(self, rollout: Rollout, window: tuple[int, int], signal: Signal, answer: Any) -> ScoredRollout:  # noqa: ANN401  what `_submit` promises
        return record_of_states(rollout, window, answer, signal, self._own_head)


def _body(ids: Sequence[int] | Ids, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    # Without the activation, which would normalise them, the states are as the model's final norm leaves them.
    return {
        "input": ids,
        "task": "token_embed",
        "use_activation": False,
        "encoding_format": "bytes",
        "embed_dtype": str(dtype).removeprefix("torch."),
        "endianness": "little",
    }


def _unread(answer: httpx.Response) -> httpx.Response:
    return answer


def _states(tokens: int, kept: slice, answer: httpx.Response) -> Tensor:
    """The states [kept, hidden] of a prompt of so many tokens.

    Raises:
        BadAnswer: these are no states, or not of each token.
    """
    try:
        (about,) = json.loads(answer.headers["metadata"])["data"]
        dtype, shape = getattr(torch, about["embed_dtype"]), list(about["shape"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadAnswer("an answer without the shape of its hidden states") from error
    if len(shape) != 2 or shape[0] != tokens:
        raise BadAnswer(f"hidden states of shape {shape} for {tokens} tokens")
    each = shape[1] * dtype.itemsize
    if len(answer.content) != tokens * each:
        raise BadAnswer(f"{len(answer.content)} bytes of hidden states, not {tokens} × {each}")
    rows = numpy.frombuffer(answer.content, numpy.uint8).reshape(tokens, each)[kept]
    return torch.from_numpy(rows.copy()).view(dtype)  # a copy: a view would keep the prompt's part alive
