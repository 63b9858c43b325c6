"""Only a growing prefix of each response: the released code's "prefix mask" (arXiv 2606.22600)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.setting import setting
from iwopd.weighting.annealed_prefix import AnnealedPrefix
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class PrefixMask(AnnealedPrefix):
    """Only a growing prefix."""

    scheme: str = setting("prefix_mask", NAME)

    def weights(self, given: "WeightInput") -> "Tensor":
        """1 in the prefix, 0 elsewhere."""
        return numerics.fixed_window_weights(given, self.share(given.progress), "first")

    def bounds(self, length: int, progress: float) -> tuple[int, int]:
        """The prefix."""
        return numerics.window_bounds(length, self.share(progress), "first")

    @classmethod
    def presets(cls) -> Mapping[str, Weighting]:
        """None: at the first step it is the window of first30."""
        return {}
