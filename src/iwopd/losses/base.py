"""What every loss is: its settings, the signal it needs of the teacher, and its value per token.

A loss is the config's own section, so its class loads without torch: `iwopd.numerics` loads it with the first formula.
All losses take the settings below, those they have no use for included: an experiment's then fit whichever is chosen.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd.setting import setting

if TYPE_CHECKING:
    from iwopd.numerics import Divergence, LossInput, TokenLosses

NAME = "what is minimised; choose it with loss=NAME"


@dataclass(kw_only=True, slots=True)
class Loss:
    """What is minimised. A subclass is one loss: `kind` has its name as default, and settings of its own may follow.

    Attributes:
        signal: what the teacher must say of a token: "sampled", the log-prob of the token itself, or "full", the hidden
            states and the head, which give its whole distribution.
        over_vocabulary: an expectation over the vocabulary: no importance ratio belongs on it, for nothing in it
            depends on which token was sampled.
    """

    kind: str = setting("policy_gradient", NAME)
    normalize: str = setting(
        "kept",
        "the mean is over the tokens that the scheme keeps, all, or sequences",
        choices=("kept", "all", "sequence"),
    )
    clip_low: float = setting(0.2, "policy_gradient: the ratio is clipped below 1 − clip_low", low=0, high=1)
    clip_high: float = setting(0.2, "policy_gradient: the ratio is clipped above 1 + clip_high", low=0)
    dual_clip: float = setting(3.0, "policy_gradient: where A < 0, the loss is at most dual_clip · |A|", above=1)
    importance_cap: float | None = setting(
        5.0,
        "policy_gradient: cap of the importance ratio π_θ/π_sampler, which corrects for rollout.temperature and "
        "rounding, not for the tokens that top_p and top_k cut off; null for no correction",
        above=0,
    )
    exopd_lambda: float = setting(
        1.0,
        "policy_gradient: λ of ExOPD (arXiv 2602.12125): above 1 goes beyond the teacher, away from the base model; "
        "1 is OPD",
        low=0,
    )

    signal = "sampled"
    over_vocabulary = False

    @property
    def bounded(self) -> bool:
        """Whether a single token can weigh no more than some bound: a sampled log-prob has none below."""
        return self.signal != "sampled"

    def needs_student_first(self, updates: int) -> bool:
        """Whether the student's log-probs must be recorded before the first of `updates` optimiser steps on a batch:
        A_t and the ratio are to the policy that all of them start from."""
        return updates > 1

    def divergence(self) -> "Divergence":
        """Of a loss with `signal` "full": what is computed from both models' log-probs over the vocabulary."""
        raise NotImplementedError  # each loss has its own

    def token_losses(self, given: "LossInput") -> "TokenLosses":
        """[batch, time], 0 outside the mask; weighted, not yet divided by anything."""
        raise NotImplementedError  # each loss has its own
