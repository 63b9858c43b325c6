"""From vLLM's prompt log-probs to a `ScoredRollout`."""

from collections.abc import Sequence
from typing import Any

import numpy
import numpy.typing

from iwopd.errors import NonFiniteError
from iwopd.types import Logprobs, Rollout, ScoredRollout, Signal, as_logprobs

NOTHING = -9999.0  # what vLLM's server writes for −inf, which JSON has not


def scored_rollout(
    rollout: Rollout,
    window: tuple[int, int],
    logprobs: "Sequence[float] | Logprobs",
    likeliest: "tuple[numpy.typing.NDArray[Any], numpy.typing.NDArray[Any]] | None" = None,
) -> ScoredRollout:
    """The window's part of the log-probs (nats) of all tokens but the first, up to the window's end.

    Args:
        likeliest: ids and log-probs [tokens, k] of the k likeliest tokens in each of these places.

    Raises:
        NonFiniteError: one is NaN or infinite; names the rollout.
        ValueError: they do not count as many as the tokens.
    """
    start, stop = window
    wanted = len(rollout.prompt_ids) + stop - 1
    if len(logprobs) != wanted:
        raise ValueError(f"rollout {rollout.name}: {len(logprobs)} teacher log-probs for {wanted} tokens")
    first = wanted - (stop - start)
    own = as_logprobs(logprobs[first:])
    more = () if likeliest is None else (likeliest[1][first:],)
    if not numpy.isfinite(own).all() or any(numpy.isnan(each).any() for each in more):
        raise NonFiniteError(
            f"the teacher's log-probs of rollout {rollout.name} are NaN or infinite; its weights are damaged "
            "or overflow: try teacher.dtype=float32"
        )
    if likeliest is None:
        return ScoredRollout(rollout, start, stop, own)
    ids, values = (each[first:] for each in likeliest)
    return ScoredRollout(
        rollout,
        start,
        stop,
        own,
        teacher_topk_ids=ids.astype(numpy.int32),  # copies: a view would keep the prompt's part alive
        teacher_topk_logprobs=values.astype(numpy.float32),
    )


def of_flat(
    rollout: Rollout, window: tuple[int, int], signal: Signal, ids: Sequence[int], logprobs: Sequence[float]
) -> ScoredRollout:
    """From vLLM's flat prompt log-probs: of each place the token itself first, then the k likeliest in order."""
    values = numpy.asarray(logprobs, numpy.float32).reshape(-1, 1 + signal.k)
    if signal.kind == "sampled":
        return scored_rollout(rollout, window, values[:, 0])
    tokens = numpy.asarray(ids, numpy.int32).reshape(values.shape)
    return scored_rollout(rollout, window, values[:, 0], (tokens[:, 1:], values[:, 1:]))


def likeliest_of(places: Sequence[dict[str, Any]], tokens: Sequence[int], k: int) -> tuple[Any, Any]:
    """Ids and log-probs [places, k] from a server's answer, which has the k likeliest tokens of a place and the token
    itself; where there are fewer, −inf fills up.

    Raises:
        KeyError, TypeError, ValueError: the answer has another form.
    """
    ids = numpy.zeros((len(places), k), numpy.int32)
    logprobs = numpy.full((len(places), k), -numpy.inf, numpy.float32)
    for row, (place, token) in enumerate(zip(places, tokens, strict=True)):
        others = [(entry["rank"], int(name), entry["logprob"]) for name, entry in place.items() if int(name) != token]
        if len(others) < k:  # the token itself is among them
            others.append((place[str(token)]["rank"], token, place[str(token)]["logprob"]))
        found = [(name, value) for _, name, value in sorted(others) if value > NOTHING][:k]
        if found:
            ids[row, : len(found)], logprobs[row, : len(found)] = zip(*found, strict=True)
    return ids, logprobs
