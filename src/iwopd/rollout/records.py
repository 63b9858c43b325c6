"""From what vLLM answers, in process or over HTTP, to a `Rollout`."""

from dataclasses import dataclass

import numpy

from iwopd.errors import NonFiniteError
from iwopd.rollout.base import Sampling
from iwopd.types import Ids, Logprobs, Prompt, Rollout, as_ids


@dataclass(frozen=True)
class Answer:
    """Token ids, their log-probs (nats) under the distribution sampled from, and why it ended."""

    ids: Ids
    logprobs: Logprobs
    finish_reason: str


def make_rollout(prompt: Prompt, sample: int, answer: Answer, sampling: Sampling, version: int) -> Rollout:
    """The record of one answer.

    Raises:
        NonFiniteError: a log-prob is NaN or infinite; names the rollout.
    """
    rollout = Rollout(
        prompt_id=prompt.id,
        prompt_ids=as_ids(prompt.ids),
        response_ids=answer.ids,
        # A greedy choice is certain; vLLM reports what the model gives it.
        sampler_logprobs=answer.logprobs if sampling.temperature > 0 else numpy.zeros_like(answer.logprobs),
        finish_reason="stop" if answer.finish_reason == "stop" else "length",
        sample=sample,
        policy_version=version,
        teacher_prompt_ids=None if prompt.teacher_ids is None else as_ids(prompt.teacher_ids),
    )
    if not numpy.isfinite(answer.logprobs).all():
        raise NonFiniteError(
            f"the engine's log-probs are NaN or infinite while it answers {rollout.name}, after {version} steps; "
            "the student's weights have diverged or are damaged: lower optim.lr, or go back to an earlier checkpoint"
        )
    return rollout
