"""The generalised Jensen-Shannon divergence over the vocabulary (GKD, arXiv 2306.13649)."""

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
class Jsd(DivergenceLoss):
    """β KL(π_T ‖ M) + (1 − β) KL(π_θ ‖ M) per token, M = β π_T + (1 − β) π_θ."""

    kind: str = setting("jsd", NAME)
    beta: float = setting(0.5, "share of the teacher in the mixture; 0 is forward_kl, 1 is reverse_kl", low=0, high=1)

    called = "Jensen-Shannon divergence"

    def divergence(self) -> "Divergence":
        """See `Loss`."""
        return partial(numerics.jsd, beta=self.beta)

    def describe(self) -> str:
        """See `Loss`."""
        return DivergenceLoss.describe(self).replace(self.called, f"{self.called} (β = {self.beta:g})", 1)
