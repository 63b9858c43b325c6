"""The theory's weight (arXiv 2606.22600): the teacher's likelihood of the prefix over the student's, to a power."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class PrefixRatio(Weighting):
    """The theory's raw prefix ratio r^α / Z."""

    scheme: str = setting("prefix_ratio", NAME)
    alpha: float = setting(0.5, "power of the prefix ratio", above=0, high=1)
    gamma: float | None = setting(None, "null for the ratio alone, a number for 1 + gamma · ratio", low=0)

    needs_batch = True  # Z is a mean over the rollouts of the batch
    keeps_all = True

    def weights(self, given: "WeightInput") -> "Tensor":
        """(π_T/π_θ)(y_<t)^alpha over its mean at position t."""
        return numerics.prefix_ratio_weights(given, self.alpha, self.gamma)
