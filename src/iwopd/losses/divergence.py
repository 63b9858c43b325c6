"""What divergences over the whole vocabulary share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.losses.base import Loss

if TYPE_CHECKING:
    from iwopd.numerics import LossInput, TokenLosses


@dataclass(kw_only=True, slots=True)
class DivergenceLoss(Loss):
    """A divergence of the student's and the teacher's next-token distributions, weighted per token."""

    signal = "full"
    over_vocabulary = True

    def token_losses(self, given: "LossInput") -> "TokenLosses":
        """See `Loss`."""
        return numerics.divergence_token_losses(given)
