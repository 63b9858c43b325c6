"""The clipped policy-gradient loss, and what its sums are divided by."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from iwopd.numerics._shapes import Bool, Float, Int

Normalize = Literal["kept", "all", "sequence"]
LOG_RATIO_LIMIT = 20.0  # nats; of the released code


@dataclass(frozen=True)
class LossResult:
    """A scalar loss to call ``backward`` on, and detached metrics."""

    loss: Tensor
    metrics: dict[str, float]


@dataclass(frozen=True)
class LossInput:
    """What a loss sees of a micro-batch, [batch, time].

    Attributes:
        logprobs: nats, of the policy being trained; gradients flow to them, unless they flow to `divergence`.
        old_logprobs: nats, the policy's when the batch was made.
        sampler_logprobs: nats, as the engine reported them while sampling.
        advantages: A_t, nats, not weighted.
        weights: w_t.
        mask: the tokens that count.
        divergence: nats, of losses over the vocabulary.
        gated: nats, a divergence that is added to any loss, weighted like it; gradients flow to it.
        baseline: nats, added to the shaped A_t.
        reward: of the task, added to A_t; [batch, 1] will do.
    """

    logprobs: Float[Tensor, "batch time"]
    old_logprobs: Float[Tensor, "batch time"]
    sampler_logprobs: Float[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    weights: Float[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]
    divergence: Float[Tensor, "batch time"] | None = None
    gated: Float[Tensor, "batch time"] | None = None
    baseline: Float[Tensor, "batch time"] | None = None
    reward: Float[Tensor, "batch ones"] | None = None


@dataclass(frozen=True)
class TokenLosses:
    """Loss and clip marks of each token, before any sum.

    Attributes:
        losses: [batch, time]; 0 outside the mask.
        clipped: True where the ratio's clip decided the loss.
        clipped_dual: True where the dual clip did.
    """

    losses: Tensor
    clipped: Tensor
    clipped_dual: Tensor


def importance_correction(
    old_logprobs: Float[Tensor, "batch time"], sampler_logprobs: Float[Tensor, "batch time"], cap: float
) -> Float[Tensor, "batch time"]:
    """Token-level truncated importance sampling: min(exp(logp_old − logp_sampler), cap), detached; in float32 at least.

    It makes good rounding and a temperature. It cannot make good top-p and top-k: what they cut off is never sampled.
    """
    gap = (_wide(old_logprobs) - _wide(sampler_logprobs)).detach()
    return gap.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=cap)


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: exp(20) is beyond float16, and so is the sum of a large batch."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def policy_token_losses(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    sampler_logprobs: Float[Tensor, "batch time"] | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    importance_cap: float = 5.0,
) -> TokenLosses:
    """The clipped surrogate of each token (arXiv 2606.22600's released code; dual clip from arXiv 1912.09729).

    ρ = exp(clamp(logp − logp_old, −20, 20)); surrogate = max(−Aρ, −A·clip(ρ, 1 − clip_low, 1 + clip_high)); where A < 0
    at most −dual_clip·A; times `importance_correction` where `sampler_logprobs` are given. All in float32 at least,
    whatever the dtype of the log-probs.

    Args:
        logprobs: nats, of the policy being trained; the only input gradients flow to.
        old_logprobs: nats, the policy's when the batch was made.
        advantages: nats, weighted already.
        sampler_logprobs: nats, as the engine reported them while sampling; None for no correction.
    """
    logprobs, old_logprobs, advantages = _wide(logprobs), _wide(old_logprobs.detach()), _wide(advantages.detach())
    zero = torch.zeros_like(logprobs)
    ratio = torch.where(mask, logprobs - old_logprobs, zero).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    advantages = torch.where(mask, advantages, zero)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.maximum(unclipped, clipped)
    bound = -dual_clip * advantages
    losses = torch.where(advantages < 0, torch.minimum(surrogate, bound), surrogate)
    if sampler_logprobs is not None:
        gap = torch.where(mask, old_logprobs - _wide(sampler_logprobs), zero)
        losses = losses * importance_correction(gap, zero, importance_cap)
    return TokenLosses(
        losses=torch.where(mask, losses, zero),
        clipped=(clipped > unclipped) & mask,
        clipped_dual=(surrogate > bound) & (advantages < 0) & mask,
    )


def divergence_token_losses(given: LossInput) -> TokenLosses:
    """w_t · divergence_t of each token; nothing is clipped.

    Raises:
        ValueError: no divergence was made.
    """
    if given.divergence is None:
        raise ValueError("the loss needs a divergence, and the forward pass made none")
    nothing = torch.zeros_like(given.mask)
    return with_gate(TokenLosses(given.weights * given.divergence, nothing, nothing), given)


def with_gate(found: TokenLosses, given: LossInput) -> TokenLosses:
    """With w_t · gated_t added, where there is one."""
    return found if given.gated is None else replace(found, losses=found.losses + given.weights * given.gated)


def policy_loss(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    sampler_logprobs: Float[Tensor, "batch time"] | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    importance_cap: float = 5.0,
    denominator: float | None = None,
) -> LossResult:
    """`policy_token_losses` summed and divided by `denominator`, by default the mask's token count ("token-mean").

    Metrics: ``clip_fraction``, ``clip_fraction_lower`` (shares of the mask's tokens) and ``approx_kl`` (nats per
    token, mean of logp_old − logp).
    """
    tokens = policy_token_losses(
        logprobs,
        old_logprobs,
        advantages,
        mask,
        sampler_logprobs=sampler_logprobs,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        importance_cap=importance_cap,
    )
    count = mask.sum().clamp(min=1)
    moved = torch.where(mask, _wide(old_logprobs) - _wide(logprobs), torch.zeros_like(tokens.losses)).detach()
    metrics = {
        "clip_fraction": tokens.clipped.sum() / count,
        "clip_fraction_lower": tokens.clipped_dual.sum() / count,
        "approx_kl": moved.sum() / count,
    }
    loss = tokens.losses.sum() / (count if denominator is None else denominator)
    return LossResult(loss, {name: value.item() for name, value in metrics.items()})


def loss_scale(
    weights: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    lengths: Int[Tensor, " batch"],
    normalize: Normalize,
    kept: Bool[Tensor, "batch time"] | None = None,
) -> tuple[Float[Tensor, "batch time"], float]:
    """How one micro-batch enters the batch's mean: a scale per token, and what it adds to the common denominator.

    The loss of a batch is Σ scale·loss over all its micro-batches, divided once by the sum of their denominators, so
    it does not depend on how the batch was split. kept: mean over the tokens that are kept; all: over all tokens of
    the responses, those cut off with the window included (as the released code does); sequence: the mean over
    responses of their means over kept tokens.

    Args:
        lengths: tokens of each whole response, which the mask may be a window of.
        kept: tokens of the mask that the scheme keeps; None for those of non-zero weight. A scheme whose weights may
            fall below what their dtype holds must name them.
    """
    kept = mask & (weights != 0) if kept is None else mask & kept
    match normalize:
        case "kept":
            return mask.to(weights.dtype), float(kept.sum())
        case "all":
            return mask.to(weights.dtype), float(lengths.sum())
        case "sequence":
            per_row = kept.sum(-1, keepdim=True)
            return (kept / per_row.clamp(min=1)).to(weights.dtype), float((per_row > 0).sum())
