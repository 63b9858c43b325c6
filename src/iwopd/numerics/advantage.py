"""The per-token advantage of on-policy distillation, and of ExOPD."""

import torch
from torch import Tensor

from iwopd.numerics._shapes import Bool, Float


def opd_advantage(
    teacher_logprobs: Float[Tensor, "batch time"],
    student_logprobs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """A_t = log π_T(y_t) − log π_θ(y_t) in nats, detached; 0 outside the mask (arXiv 2606.22600, standard OPD).

    Whatever masked places hold, NaN included, stays out of the result.
    """
    difference = teacher_logprobs.detach() - student_logprobs.detach()
    return torch.where(mask, difference, torch.zeros_like(difference))


def exopd_advantage(
    teacher_logprobs: Float[Tensor, "batch time"],
    student_logprobs: Float[Tensor, "batch time"],
    base_logprobs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    scale: float = 1.25,
) -> Float[Tensor, "batch time"]:
    """A_t = λ (log π_T − log π_base) − (log π_θ − log π_base) in nats, detached; 0 outside the mask (ExOPD, arXiv
    2602.12125; λ = 1.25 in arXiv 2606.22600).

    Args:
        base_logprobs: of the model that the teacher's gain is measured from; in the paper the student before training.
        scale: λ. 1 is OPD; above it the student is drawn beyond the teacher, along what sets the teacher off from the
            base.
    """
    gain = opd_advantage(teacher_logprobs, base_logprobs, mask)
    return scale * gain - opd_advantage(student_logprobs, base_logprobs, mask)
