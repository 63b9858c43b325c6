"""The per-token advantage of on-policy distillation, and of ExOPD; its shapes; and that of a task's reward."""

from typing import Literal

import torch
from torch import Tensor

from iwopd.numerics._shapes import Bool, Float

Shape = Literal["none", "clip", "soft_log"]


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


def shaped(advantages: Tensor, shape: Shape, bound: float = 5.0) -> Tensor:
    """A signal that is bounded, or grows slowly: "clip" to ±`bound` nats, or "soft_log", sign(A) · log(1 + |A|) (arXiv
    2607.13399); "none" leaves it as it is."""
    match shape:
        case "none":
            return advantages
        case "clip":
            return advantages.clamp(-bound, bound)
        case "soft_log":
            return advantages.sign() * advantages.abs().log1p()


def group_advantages(rewards: Float[Tensor, "prompts samples"]) -> Float[Tensor, "prompts samples"]:
    """(r − mean) / sd over the samples of each prompt (GRPO, arXiv 2402.03300; beside a teacher: KDRL); 0 where all
    have the same reward. The standard deviation is that of the samples themselves (divided by n)."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(spread > 0, centred / torch.where(spread > 0, spread, 1.0), torch.zeros_like(centred))
