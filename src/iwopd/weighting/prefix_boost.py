"""A growing prefix weighs more: the released code's "prefix weight" (arXiv 2606.22600)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.setting import setting
from iwopd.weighting.annealed_prefix import AnnealedPrefix
from iwopd.weighting.base import NAME

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class PrefixBoost(AnnealedPrefix):
    """A growing prefix weighted more than the rest."""

    scheme: str = setting("prefix_boost", NAME)
    boost: float = setting(1.5, "weight of the prefix; the rest has 1", above=0)

    keeps_all = True

    def weights(self, given: "WeightInput") -> "Tensor":
        """`boost` in the prefix, 1 elsewhere."""
        return numerics.prefix_boost_weights(given, self.share(given.progress), self.boost)
