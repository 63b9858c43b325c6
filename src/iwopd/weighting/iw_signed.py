"""IW-OPD with signed accumulation (an ablation of arXiv 2606.22600)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.setting import setting
from iwopd.weighting.base import NAME
from iwopd.weighting.iw import Iw

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class IwSigned(Iw):
    """Importance weights from the signed advantages before a token."""

    scheme: str = setting("iw_signed", NAME)

    def weights(self, given: "WeightInput") -> "Tensor":
        """1 + gamma · (1 + Σ_{k<t} A_k / Σ_{k≤T}|A_k|)."""
        return numerics.iw_signed_weights(given, self.gamma)
