"""IW-OPD without its floor of 1 (an ablation of arXiv 2606.22600)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class IwSurrogate(Weighting):
    """Importance weights without the floor of 1."""

    scheme: str = setting("iw_surrogate", NAME)

    keeps_all = True

    def weights(self, given: "WeightInput") -> "Tensor":
        """1 − Σ_{k<t}|A_k| / Σ_{k≤T}|A_k|."""
        return numerics.iw_surrogate_weights(given)
