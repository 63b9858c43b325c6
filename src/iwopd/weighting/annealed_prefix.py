"""What the released code's prefix schemes share: a prefix that grows over the training (arXiv 2606.22600)."""

from dataclasses import dataclass
from typing import Any

from iwopd import numerics
from iwopd.setting import setting
from iwopd.weighting.base import Weighting


@dataclass(kw_only=True, slots=True)
class AnnealedPrefix(Weighting):
    """A prefix of each response, in share of its tokens, that grows from `start` to `end`."""

    start: float = setting(0.3, "share of the tokens in the prefix at the first step", above=0, high=1)
    end: float = setting(1.0, "share of the tokens in the prefix at the last step", above=0, high=1)
    anneal: str = setting("cosine", "shape of the growth", choices=("cosine", "linear"))

    def share(self, progress: float) -> float:
        """Of the tokens, in the prefix at this point of the training."""
        shape: Any = self.anneal  # its choices are checked by the schema
        return numerics.annealed_fraction(self.start, self.end, progress, shape)

    @property
    def annealed(self) -> str | None:
        """See `Weighting`."""
        return f"weighting.scheme={self.scheme}" if self.start != self.end else None
