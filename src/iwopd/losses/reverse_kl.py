"""KL(student ‖ teacher) over the whole vocabulary: less noise per token than the sampled loss."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.losses.base import NAME
from iwopd.losses.divergence import DivergenceLoss
from iwopd.setting import setting

if TYPE_CHECKING:
    from iwopd.numerics import Divergence


@dataclass(kw_only=True, slots=True)
class ReverseKl(DivergenceLoss):
    """Σ_v π_θ(v) (log π_θ(v) − log π_T(v)) per token."""

    kind: str = setting("reverse_kl", NAME)

    def divergence(self) -> "Divergence":
        """See `Loss`."""
        return numerics.reverse_kl
