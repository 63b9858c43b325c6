"""Which tokens count: every scheme is a pure function of a `WeightInput` and its own parameters.

Sources: arXiv 2606.22600 for iw and its ablations, prefix boost and mask; the windows are its position study. Weights
are detached and 0 outside the mask. To add a scheme, see CONTRIBUTING.
"""

# torch's own annotations are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from iwopd.numerics._shapes import Bool, Float, Int

Side = Literal["first", "last", "middle"]
Anneal = Literal["cosine", "linear"]
EPSILON = 1e-8  # of the released code's normalisation


@dataclass(frozen=True)
class WeightInput:
    """What a scheme sees. Rows may be cut to the scheme's window, so places are counted by `positions`, not columns.

    Attributes:
        advantages: A_t in nats, 0 outside the mask.
        mask: response tokens of the window.
        positions: index of each token within its whole response.
        lengths: tokens of each whole response.
        teacher_logprobs: nats.
        progress: share of the training done, 0 at the first step, 1 at the last.
        seeds: one per row, from (seed, step, prompt, sample).
        measures: [batch, time] each, what the scheme's `measures` names of both models' distributions (`MEASURES`).
    """

    advantages: Float[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]
    positions: Int[Tensor, "batch time"]
    lengths: Int[Tensor, " batch"]
    teacher_logprobs: Float[Tensor, "batch time"]
    progress: float = 0.0
    seeds: Sequence[int] = ()
    measures: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


# ---------------------------------------------------------------------------------------------- windows


def window_size(length: int, fraction: float) -> int:
    """Tokens a window keeps: ceil(fraction · length), at least 1, at most length."""
    # The small term undoes binary rounding: 0.07 · 100 is 7.000000000000001 in floating point.
    return min(length, max(1, math.ceil(fraction * length - 1e-9)))


def window_bounds(length: int, fraction: float, side: Side = "first") -> tuple[int, int]:
    """The window ``[start, stop)`` of a response of `length` tokens.

    Raises:
        ValueError: fraction outside (0, 1] or unknown side.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: must be above 0 and at most 1")
    keep = window_size(length, fraction)
    match side:
        case "first":
            start = 0
        case "last":
            start = length - keep
        case "middle":
            start = (length - keep) // 2
        case _:
            raise ValueError(f"side={side}: must be first, last or middle")
    return start, start + keep


def in_window(
    positions: Int[Tensor, "batch time"], lengths: Int[Tensor, " batch"], fraction: float, side: Side
) -> Bool[Tensor, "batch time"]:
    """True where a token lies in the window of its response."""
    whole: list[int] = lengths.tolist()
    bounds = [window_bounds(length, fraction, side) for length in whole]
    start, stop = torch.tensor(bounds, device=positions.device).reshape(-1, 2).T[..., None]
    return (positions >= start) & (positions < stop)


def window_weights(
    mask: Bool[Tensor, "batch time"], fraction: float, side: Side = "first"
) -> Float[Tensor, "batch time"]:
    """1 on the first (last, middle) `fraction` of each response's tokens, 0 elsewhere: Prefix-30 and Suffix-30 of the
    paper's position study at fraction 0.3. Keeps ceil(fraction · T) tokens, at least 1.

    Raises:
        ValueError: fraction outside (0, 1] or unknown side.
    """
    positions = mask.long().cumsum(-1) - 1
    return (in_window(positions, mask.sum(-1), fraction, side) & mask).to(torch.get_default_dtype())


def fixed_window_weights(given: WeightInput, fraction: float, side: Side) -> Float[Tensor, "batch time"]:
    """`window_weights` of rows that may be cut to that window already."""
    return (in_window(given.positions, given.lengths, fraction, side) & given.mask).to(given.advantages.dtype)


def random_window_weights(given: WeightInput, fraction: float) -> Float[Tensor, "batch time"]:
    """1 on a random `fraction` of each response's tokens (a control); the choice follows from the row's seed alone."""
    weights = torch.zeros_like(given.advantages)
    whole: list[int] = given.lengths.tolist()
    for row, (length, seed) in enumerate(zip(whole, given.seeds, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        kept = torch.zeros(max(length, 1))
        kept[torch.randperm(length, generator=generator)[: window_size(length, fraction)]] = 1.0
        places = given.positions[row].clamp(0, max(length - 1, 0))
        weights[row] = kept.to(weights)[places]
    return weights * given.mask


def annealed_fraction(start: float, end: float, progress: float, anneal: Anneal) -> float:
    """The prefix share r of the released code's annealed schemes, from `start` to `end` over the training."""
    done = min(1.0, max(0.0, progress))
    if anneal == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return start + (end - start) * done


def prefix_boost_weights(given: WeightInput, fraction: float, boost: float) -> Float[Tensor, "batch time"]:
    """`boost` on the first `fraction` of the tokens, 1 on the others (the released code's prefix weight, × 1.5)."""
    inside = in_window(given.positions, given.lengths, fraction, "first")
    return torch.where(inside, boost, 1.0).to(given.advantages) * given.mask


# ------------------------------------------------------------------------- weights from the disagreement before a token


def exclusive_prefix_sum(
    values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch 1"]]:
    """Σ_{k<t} values_k at every t, and the sum over the whole row; in float32 at least. Masked places add nothing."""
    wide = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    running = torch.where(mask, wide, torch.zeros_like(wide)).cumsum(-1)
    before = torch.cat([torch.zeros_like(running[..., :1]), running[..., :-1]], dim=-1)
    return before[..., : values.shape[-1]], running[..., -1:]


def prefix_share(
    advantages: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Σ_{k<t}|A_k| / (Σ_{k≤T}|A_k| + 1e-8): the share of a response's disagreement that came before token t."""
    before, total = exclusive_prefix_sum(advantages.abs(), mask)
    return (before / (total + EPSILON)).clamp(0.0, 1.0)


def iw_weights(
    advantages: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], gamma: float = 0.5
) -> Float[Tensor, "batch time"]:
    """IW-OPD: w_t = 1 + γ · (1 − Σ_{k<t}|A_k| / (Σ_{k≤T}|A_k| + 1e-8)), detached, 0 outside the mask.

    Weights fall along a response from 1 + γ towards 1; γ = 0 is uniform OPD. Source: arXiv 2606.22600, the practical
    weight; the denominator sums all T tokens as in the released code.

    Raises:
        ValueError: gamma below 0.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma={gamma}: must be 0 or more")
    return _masked(1 + gamma * (1 - prefix_share(advantages, mask)), mask, advantages)


def iw_reversed_weights(given: WeightInput, gamma: float) -> Float[Tensor, "batch time"]:
    """The weights of IW-OPD in the opposite order within each response (a control)."""
    forward = iw_weights(given.advantages, given.mask, gamma)
    # The token at rank r of n (among the masked ones) takes the weight of the token at rank n − 1 − r.
    order = torch.argsort(~given.mask, dim=-1, stable=True)
    rank = given.mask.long().cumsum(-1) - 1
    mirrored = (given.mask.sum(-1, keepdim=True) - 1 - rank).clamp(min=0)
    return forward.gather(-1, order.gather(-1, mirrored)) * given.mask


def iw_signed_weights(given: WeightInput, gamma: float) -> Float[Tensor, "batch time"]:
    """Signed accumulation (the paper's ablation): −Σ|A_k| of IW-OPD becomes ΣA_k, the prefix log-ratio itself.

    w_t = 1 + γ · (1 + Σ_{k<t} A_k / (Σ_{k≤T}|A_k| + 1e-8)), within [1, 1 + 2γ].
    """
    before, _ = exclusive_prefix_sum(given.advantages, given.mask)
    _, total = exclusive_prefix_sum(given.advantages.abs(), given.mask)
    share = (before / (total + EPSILON)).clamp(-1.0, 1.0)
    return _masked(1 + gamma * (1 + share), given.mask, given.advantages)


def iw_surrogate_weights(given: WeightInput) -> Float[Tensor, "batch time"]:
    """The surrogate alone, without OPD's floor of 1: w_t = 1 − Σ_{k<t}|A_k| / (Σ_{k≤T}|A_k| + 1e-8)."""
    return _masked(1 - prefix_share(given.advantages, given.mask), given.mask, given.advantages)


def prefix_ratio_weights(given: WeightInput, alpha: float, gamma: float | None) -> Float[Tensor, "batch time"]:
    """The theory's weight r̃_t = r(y_<t)^α / Z_{α,t}, r = π_T/π_θ, Z the mean over the rollouts alive at token t.

    Z needs the whole batch. With `gamma`, the weight is 1 + γ · r̃_t (the ratio blended with OPD). Computed in log
    scale; the raw ratio is sharp, so single rollouts can take most of a position's weight.
    """
    log_ratio, _ = exclusive_prefix_sum(given.advantages, given.mask)
    scaled = torch.where(given.mask, alpha * log_ratio, -torch.inf)
    width = int(given.lengths.max()) if given.lengths.numel() else 0
    # Rows stand at their own positions (padding may differ), so Z is taken per position, not per column.
    places = torch.where(given.mask, given.positions, width)
    at_position = scaled.new_full((scaled.shape[0], width + 1), -torch.inf).scatter(-1, places, scaled)
    alive = at_position.isfinite().sum(0).clamp(min=1)
    log_z = torch.logsumexp(at_position, dim=0) - alive.to(scaled.dtype).log()
    ratio = (scaled - log_z[places]).exp()
    return _masked(ratio if gamma is None else 1 + gamma * ratio, given.mask, given.advantages)


def _masked(
    weights: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], like: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    return torch.where(mask, weights, torch.zeros_like(weights)).to(like.dtype)
