"""The tokens where the student is unsure or disagrees with the teacher (TIP, arXiv 2604.14084)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class Tip(Weighting):
    """The batch's tokens of the highest student entropy or divergence."""

    scheme: str = setting("tip", NAME)
    fraction: float = setting(0.5, "share of the batch's tokens kept, ceil(fraction · tokens)", above=0, high=1)

    needs_batch = True
    measures = ("entropy", "reverse_kl")

    def weights(self, given: "WeightInput") -> "Tensor":
        """1 on the `fraction` of the batch's tokens with the highest h + d − h·d, 0 elsewhere."""
        return numerics.tip_weights(given, self.fraction)
