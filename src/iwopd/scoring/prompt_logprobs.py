"""From vLLM's prompt log-probs to a `ScoredRollout`."""

from collections.abc import Sequence

import numpy

from iwopd.errors import NonFiniteError
from iwopd.types import Rollout, ScoredRollout, as_logprobs


def scored_rollout(rollout: Rollout, window: tuple[int, int], logprobs: Sequence[float]) -> ScoredRollout:
    """The window's part of the log-probs (nats) of all tokens but the first, up to the window's end.

    Raises:
        NonFiniteError: one is NaN or infinite; names the rollout.
        ValueError: they do not count as many as the tokens.
    """
    start, stop = window
    wanted = len(rollout.prompt_ids) + stop - 1
    if len(logprobs) != wanted:
        raise ValueError(f"rollout {rollout.name}: {len(logprobs)} teacher log-probs for {wanted} tokens")
    own = as_logprobs(logprobs[wanted - (stop - start) :])
    if not numpy.isfinite(own).all():
        raise NonFiniteError(
            f"the teacher's log-probs of rollout {rollout.name} are NaN or infinite; its weights are damaged "
            "or overflow: try teacher.dtype=float32"
        )
    return ScoredRollout(rollout, start, stop, own)
