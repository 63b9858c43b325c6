"""A control without a teacher: what the student itself finds unlikely becomes less likely (OPSA, arXiv 2608.31046)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class FixedNegative(Weighting):
    """An advantage of −1 on the student's unlikely tokens, whatever the teacher says of them. Where this trains as well
    as distillation, the teacher was not needed; it is loaded all the same, and measures what is done to the student.

    † Inferred from a description: the threshold and the size are ours.
    """

    scheme: str = setting("fixed_negative", NAME)
    threshold: float = setting(0.5, "probability by the student, below which a token is unlikely", above=0, high=1)
    size: float = setting(1.0, "of the negative advantage, nats", above=0)

    advantage = -1.0

    def weights(self, given: "WeightInput") -> "Tensor":
        """size where log π_θ(y_t) < log threshold, else 0; log π_θ is log π_T − A_t."""
        student = given.teacher_logprobs - given.advantages
        return self.size * (student < math.log(self.threshold)).to(given.advantages)
