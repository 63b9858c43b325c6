"""IW-OPD: a token weighs less, the more student and teacher disagreed before it (arXiv 2606.22600)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class Iw(Weighting):
    """Importance weights from the disagreement before a token."""

    scheme: str = setting("iw", NAME)
    gamma: float = setting(0.5, "how much early tokens gain", low=0, fix="0 is uniform, the paper uses 0.5")

    keeps_all = True

    def weights(self, given: "WeightInput") -> "Tensor":
        """1 + gamma · (1 − Σ_{k<t}|A_k| / Σ_{k≤T}|A_k|)."""
        return numerics.iw_weights(given.advantages, given.mask, self.gamma)
