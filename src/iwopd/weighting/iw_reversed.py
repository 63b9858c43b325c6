"""The weights of IW-OPD in the opposite order, a control: what early tokens gained, late ones gain."""

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
class IwReversed(Iw):
    """The weights of IW-OPD in the opposite order within each response."""

    scheme: str = setting("iw_reversed", NAME)

    def weights(self, given: "WeightInput") -> "Tensor":
        """Those of `Iw`, mirrored."""
        return numerics.iw_reversed_weights(given, self.gamma)
