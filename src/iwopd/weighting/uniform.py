"""Every token alike: standard OPD."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class Uniform(Weighting):
    """Every token alike: standard OPD."""

    scheme: str = setting("uniform", NAME)

    keeps_all = True

    def weights(self, given: "WeightInput") -> "Tensor":
        """1 on every token."""
        return given.mask.to(given.advantages.dtype)
