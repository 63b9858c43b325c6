"""Records from plain lists."""

from collections.abc import Sequence
from typing import Any

from iwopd.types import Rollout, as_ids, as_logprobs


def plain_rollout(
    prompt: Sequence[int], response: Sequence[int], logprobs: Sequence[float] | float = -1.0, **fields: Any
) -> Rollout:
    """`logprobs` are the sampler's, one for each token of the response or one for all; `fields` the other fields."""
    values = [logprobs] * len(response) if isinstance(logprobs, float) else logprobs
    given = {"prompt_id": "p", "finish_reason": "stop"} | fields
    return Rollout(
        prompt_ids=as_ids(prompt), response_ids=as_ids(response), sampler_logprobs=as_logprobs(values), **given
    )
