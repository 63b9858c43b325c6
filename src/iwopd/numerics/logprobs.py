"""Log-probs of tokens without a [tokens × vocabulary] tensor for the whole micro-batch.

Hidden states go through the LM head a chunk of tokens at a time; with gradients, each chunk is recomputed in backward
(`torch.utils.checkpoint`), so neither pass holds more than one chunk of logits. The head is any callable, so tied,
LoRA-adapted and soft-capped heads work alike.
"""

# torch's own annotations are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from iwopd.numerics._shapes import Float, Int

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChunkedScores:
    """Per token, float32: full-vocabulary reverse KL and both log-probs of the token itself, in nats."""

    reverse_kl: Tensor
    logprobs: Tensor
    teacher_logprobs: Tensor


def _gather(logits: Tensor, targets: Tensor) -> Tensor:
    # log_softmax at one place, without a second [chunk × vocabulary] tensor.
    return logits.gather(-1, targets[:, None]).squeeze(-1) - torch.logsumexp(logits, dim=-1)


def _run(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        # Nothing random happens inside, so the RNG state need not be kept.
        return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore
    return function(*tensors)


def chunked_token_logprobs(
    hidden: Float[Tensor, "tokens width"], targets: Int[Tensor, " tokens"], head: Head, chunk: int
) -> Float[Tensor, " tokens"]:
    """log p(targets[i]) in nats, float32 at least, where ``head(hidden[i])`` are the logits that predict it.

    Args:
        chunk: tokens whose logits exist at one time, in forward and in backward.
    """

    def scored(states: Tensor, ids: Tensor) -> Tensor:
        logits = head(states)
        return _gather(logits.to(torch.promote_types(logits.dtype, torch.float32)), ids)

    parts = [_run(scored, states, ids) for states, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True)]
    return torch.cat(parts)


def chunked_reverse_kl(
    hidden: Float[Tensor, "tokens width"],
    teacher_hidden: Float[Tensor, "tokens teacher_width"],
    targets: Int[Tensor, " tokens"],
    head: Head,
    teacher_head: Head,
    chunk: int,
) -> ChunkedScores:
    """KL(π_θ ‖ π_T) = Σ_v π_θ(v) (log π_θ(v) − log π_T(v)) per token, over the vocabulary both models have.

    The log-probs of the sampled tokens come with it, so a full-vocabulary loss needs no further pass; only
    `reverse_kl` carries gradients.
    """

    def scored(states: Tensor, teacher_states: Tensor, ids: Tensor) -> Tensor:
        logits, teacher_logits = head(states), teacher_head(teacher_states).detach()
        shared = min(logits.shape[-1], teacher_logits.shape[-1])  # padded vocabularies may differ in size
        wide = torch.promote_types(logits.dtype, torch.float32)
        student = torch.log_softmax(logits[:, :shared].to(wide), dim=-1)
        teacher = torch.log_softmax(teacher_logits[:, :shared].to(wide), dim=-1)
        kl = (student.exp() * (student - teacher)).sum(-1)
        at_token = torch.stack([student, teacher]).detach().gather(-1, ids.expand(2, -1)[..., None]).squeeze(-1)
        return torch.cat([kl[None], at_token])

    pieces = zip(hidden.split(chunk), teacher_hidden.split(chunk), targets.split(chunk), strict=True)
    kl, logprobs, teacher_logprobs = torch.cat([_run(scored, *piece) for piece in pieces], dim=-1)
    return ChunkedScores(kl, logprobs.detach(), teacher_logprobs.detach())
