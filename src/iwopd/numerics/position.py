"""Where in a response things happen: means by position, prefixes, and how a weighting spends its weight.

The diagnostics of arXiv 2606.22600's position study. Tensors are [batch, time] over whole responses: column t is
response token t, and the mask is True on the first `length` columns of a row.
"""

# torch's own annotations are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import math

import torch
from torch import Tensor

from iwopd.numerics._shapes import Bool, Float, Int
from iwopd.numerics.precision import widened


def prefix_size(length: int, share: float) -> int:
    """Tokens in a prefix of that share of a response: floor(share · length); 0 at 0, all at 1."""
    # The small term undoes binary rounding: 0.29 · 100 is 28.999999999999996 in floating point.
    return min(length, math.floor(share * length + 1e-9))


def relative_bins(mask: Bool[Tensor, "batch time"], bins: int = 10) -> Int[Tensor, "batch time"]:
    """The tenth (for ten bins) of its response that each token lies in, from 0: floor(bins · t / T). Places outside
    the mask get numbers too, which mean nothing."""
    places = torch.arange(mask.shape[-1], device=mask.device)
    return (bins * places).div(mask.sum(-1, keepdim=True).clamp(min=1), rounding_mode="floor").clamp(max=bins - 1)


def absolute_bins(mask: Bool[Tensor, "batch time"], width: int) -> Int[Tensor, "batch time"]:
    """t // width for every token."""
    return (torch.arange(mask.shape[-1], device=mask.device) // width).expand(mask.shape)


def binned_sum(
    values: Float[Tensor, "batch time"],
    bins: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    count: int,
) -> Float[Tensor, " count"]:
    """Sum of the masked values in each bin, in float64."""
    inside = widened(values[mask])
    return inside.new_zeros(count).index_add_(0, bins[mask], inside)


def binned_mean(
    values: Float[Tensor, "batch time"],
    bins: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    count: int,
) -> Float[Tensor, " count"]:
    """Mean over the tokens of each bin, responses of all lengths together; NaN for a bin without tokens."""
    return binned_sum(values, bins, mask, count) / binned_sum(torch.ones_like(values), bins, mask, count)


def shares(values: Float[Tensor, " bins"]) -> Float[Tensor, " bins"]:
    """Each value's share of their sum; zeros where all are 0, NaN where parts of unlike sign cancel.

    Where more than a tenth of Σ|value| cancels, the parts are no shares of a whole: near a sum of 0 they would be
    thousands of per cent.
    """
    total = values.sum()
    size = values.abs().sum()
    if size == 0:
        return torch.zeros_like(values)
    return values / total if total.abs() >= 0.9 * size else torch.full_like(values, math.nan)


def prefix_log_ratios(
    advantages: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], points: int = 11
) -> Float[Tensor, "batch points"]:
    """log π_T(y_≤k) − log π_θ(y_≤k) = Σ_{t≤k} A_t in nats, after prefixes of 0, 1/(points−1), … 1 of each response."""
    running = widened(torch.where(mask, advantages, torch.zeros_like(advantages))).cumsum(-1)
    running = torch.cat([running.new_zeros(len(running), 1), running], dim=-1)
    lengths: list[int] = mask.sum(-1).tolist()
    sizes = [[prefix_size(length, point / (points - 1)) for point in range(points)] for length in lengths]
    return running.gather(-1, torch.tensor(sizes, device=running.device))


def effective_sample_size(weights: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> float:
    """(Σw)² / Σw² over the tokens of the mask, as a share of their count: 1 for weights all alike, 1/n where a single
    token has them all; 0 where there is no weight."""
    inside = widened(weights[mask])
    squares = inside.square().sum().item()
    return 0.0 if squares == 0 else inside.sum().item() ** 2 / squares / len(inside)
