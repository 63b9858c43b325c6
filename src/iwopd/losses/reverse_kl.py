"""KL(student ‖ teacher) over the vocabulary: less noise per token than the sampled loss."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.losses.base import NAME
from iwopd.losses.divergence import DivergenceLoss
from iwopd.setting import setting

if TYPE_CHECKING:
    from iwopd.numerics import Divergence


@dataclass(kw_only=True, slots=True)
class ReverseKl(DivergenceLoss):
    """Σ_v π_θ(v) (log π_θ(v) − log π_T(v)) per token; with a skew, to the mixture of both."""

    kind: str = setting("reverse_kl", NAME)

    called = "reverse KL"

    def divergence(self) -> "Divergence":
        """See `Loss`."""
        return partial(numerics.skew_reverse_kl, skew=self.skew) if self.skew else numerics.reverse_kl
