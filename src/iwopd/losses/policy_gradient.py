"""The paper's loss (arXiv 2606.22600): a clipped policy gradient on the sampled tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd import numerics
from iwopd.losses.base import NAME, Loss
from iwopd.setting import setting

if TYPE_CHECKING:
    from iwopd.numerics import LossInput, TokenLosses


@dataclass(kw_only=True, slots=True)
class PolicyGradient(Loss):
    """Clipped sampled-token policy gradient, importance-corrected."""

    kind: str = setting("policy_gradient", NAME)

    def token_losses(self, given: "LossInput") -> "TokenLosses":
        """See `Loss`."""
        return numerics.policy_token_losses(
            given.logprobs,
            given.old_logprobs,
            given.weights * given.advantages,
            given.mask,
            sampler_logprobs=None if self.importance_cap is None else given.sampler_logprobs,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            importance_cap=self.importance_cap or 1.0,
        )
