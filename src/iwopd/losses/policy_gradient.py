"""The paper's loss (arXiv 2606.22600): a clipped policy gradient on the sampled tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from iwopd import numerics
from iwopd.losses.base import NAME, Loss
from iwopd.setting import setting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import LossInput, Measure, TokenLosses


@dataclass(kw_only=True, slots=True)
class PolicyGradient(Loss):
    """Clipped sampled-token policy gradient, importance-corrected."""

    kind: str = setting("policy_gradient", NAME)

    def trained(self) -> "dict[str, Measure]":
        """See `Loss`."""
        return {"logprobs": numerics.token_logprobs, **Loss.trained(self)}

    def known(self) -> "dict[str, Measure]":
        """See `Loss`."""
        if self.baseline == "none":
            return {}
        return {"baseline": partial(numerics.advantage_baseline, shape=self._shape)}

    @property
    def _shape(self) -> "Callable[[Tensor], Tensor]":
        shape: Any = self.shape  # its choices are checked by the schema
        return partial(numerics.shaped, shape=shape, bound=self.shape_bound)

    def token_losses(self, given: "LossInput") -> "TokenLosses":
        """See `Loss`. A_t is shaped, then the baseline is added, and then the task's reward."""
        advantages = self._shape(given.advantages)
        for added in (given.baseline, given.reward):
            if added is not None:
                advantages = advantages + added
        found = numerics.policy_token_losses(
            given.logprobs,
            given.old_logprobs,
            given.weights * advantages,
            given.mask,
            sampler_logprobs=None if self.importance_cap is None else given.sampler_logprobs,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            importance_cap=self.importance_cap or 1.0,
        )
        return numerics.with_gate(found, given)

    def describe(self) -> str:
        """See `Loss`."""
        shaped = {
            "none": "",
            "clip": f", clipped to ±{self.shape_bound:g} nats",
            "soft_log": ", as sign(A) log(1 + |A|)",
        }
        beyond = f", {self.exopd_lambda:g} times beyond the base model (ExOPD)" if self.exopd_lambda != 1 else ""
        based = ", with KL(student ‖ teacher) as baseline" if self.baseline != "none" else ""
        gated = Loss.describe(self).removeprefix(self.called)
        estimate = "policy gradient on the sampled tokens' log-ratio (reverse KL, estimated from one token)"
        return f"{estimate}{beyond}{shaped[self.shape]}{based}{gated}"
