"""What divergences of whole distributions share, whichever categories the teacher's signal makes of the vocabulary."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.losses.base import Loss

if TYPE_CHECKING:
    from iwopd.numerics import Divergence, LossInput, Measure, TokenLosses


@dataclass(kw_only=True, slots=True)
class DivergenceLoss(Loss):
    """A divergence of the student's and the teacher's next-token distributions, weighted per token."""

    own_signal = "full"
    over_vocabulary = True

    def divergence(self) -> "Divergence":
        """From both models' log-probs of the same categories."""
        raise NotImplementedError  # each has its own

    def trained(self) -> "dict[str, Measure]":
        """See `Loss`."""
        return {"divergence": numerics.measure_of(self.divergence()), **Loss.trained(self)}

    def token_losses(self, given: "LossInput") -> "TokenLosses":
        """See `Loss`."""
        return numerics.divergence_token_losses(given)
