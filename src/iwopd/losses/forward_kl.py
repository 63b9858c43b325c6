"""KL(teacher ‖ student) over the whole vocabulary: the student covers all that the teacher may say."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.losses.base import NAME
from iwopd.losses.divergence import DivergenceLoss
from iwopd.setting import setting

if TYPE_CHECKING:
    from iwopd.numerics import Divergence


@dataclass(kw_only=True, slots=True)
class ForwardKl(DivergenceLoss):
    """Σ_v π_T(v) (log π_T(v) − log π_θ(v)) per token."""

    kind: str = setting("forward_kl", NAME)

    def divergence(self) -> "Divergence":
        """See `Loss`."""
        return numerics.forward_kl
