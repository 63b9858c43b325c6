"""Weights that rise with position, the opposite of iw (PW-OPSD, arXiv 2605.21606, where the teacher is privileged)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class Pw(Weighting):
    """A sigmoid of the relative position."""

    scheme: str = setting("pw", NAME)
    minimum: float = setting(
        0.25, "weight far before the middle of the rise; far after it the weight is 1", low=0, high=1
    )
    middle: float = setting(0.3, "share of the response where the rise is half done", low=0, high=1)
    scale: float = setting(0.1, "width of the rise, in shares of the response", above=0)

    keeps_all = True

    def weights(self, given: "WeightInput") -> "Tensor":
        """minimum + (1 − minimum) · σ(((t − ½)/T − middle) / scale), t from 1 to T."""
        place = (given.positions + 0.5).to(given.advantages) / given.lengths[:, None]
        rise = ((place - self.middle) / self.scale).sigmoid()
        return self.minimum + (1 - self.minimum) * rise
