"""Only what the teacher verifies: the student's likeliest token is among its own (SelecTKD, arXiv 2510.24021)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class SelectVerify(Weighting):
    """Little weight where the teacher would not have expected what the student thinks likeliest."""

    scheme: str = setting("select_verify", NAME)
    top: int = setting(5, "the teacher's likeliest tokens among which the student's likeliest one must be", low=1)
    rejected: float = setting(0.01, "weight of the other tokens", low=0, high=1)

    measures = ("teacher_rank",)

    @property
    def needed_top_k(self) -> int:
        """See `Weighting`."""
        return self.top

    def weights(self, given: "WeightInput") -> "Tensor":
        """1 where fewer than `top` tokens are likelier to the teacher than the student's likeliest one, else
        `rejected`."""
        verified = (given.measures["teacher_rank"] < self.top).to(given.advantages)
        return self.rejected + (1 - self.rejected) * verified
