"""KL(teacher ‖ student) over the vocabulary: the student covers all that the teacher may say."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.losses.base import NAME
from iwopd.losses.divergence import DivergenceLoss
from iwopd.setting import setting

if TYPE_CHECKING:
    from iwopd.numerics import Divergence


@dataclass(kw_only=True, slots=True)
class ForwardKl(DivergenceLoss):
    """Σ_v π_T(v) (log π_T(v) − log π_θ(v)) per token; with a skew, to the mixture of both."""

    kind: str = setting("forward_kl", NAME)

    called = "forward KL"

    def divergence(self) -> "Divergence":
        """See `Loss`."""
        return partial(numerics.skew_forward_kl, skew=self.skew) if self.skew else numerics.forward_kl
