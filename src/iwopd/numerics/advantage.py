"""The per-token advantage of on-policy distillation."""

import torch
from torch import Tensor

from iwopd.numerics._shapes import Bool, Float


def opd_advantage(
    teacher_logprobs: Float[Tensor, "batch time"],
    student_logprobs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """A_t = log π_T(y_t) − log π_θ(y_t) in nats, detached; 0 outside the mask (arXiv 2606.22600, standard OPD).

    Whatever stands in masked places, NaN included, stays out of the result.
    """
    difference = teacher_logprobs.detach() - student_logprobs.detach()
    return torch.where(mask, difference, torch.zeros_like(difference))
