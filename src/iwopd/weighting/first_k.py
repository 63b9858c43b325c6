"""Only the first tokens of each response, however long it is (early stopping, arXiv 2605.27028)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class FirstK(Weighting):
    """Only the first k tokens. There the rollouts themselves end after them, as `rollout.horizon` has it."""

    scheme: str = setting("first_k", NAME)
    k: int = setting(100, "tokens kept, counted from the first", low=1)

    def weights(self, given: "WeightInput") -> "Tensor":
        """1 for t ≤ k, t from 1; 0 elsewhere."""
        return (given.positions < self.k).to(given.advantages)

    def bounds(self, length: int, progress: float) -> tuple[int, int]:
        """The first k tokens."""
        return 0, min(length, self.k)
