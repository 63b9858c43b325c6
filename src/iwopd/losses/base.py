"""What every loss is: its settings, the signal it needs of the teacher, and its value per token.

A loss is the config's own section, so its class loads without torch: `iwopd.numerics` loads it with the first formula.
All losses take the settings below, those they have no use for included: an experiment's then fit whichever is chosen.
What would be another objective is refused where it has no place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from iwopd import numerics
from iwopd.setting import setting
from iwopd.types import Signal, SignalKind

if TYPE_CHECKING:
    from iwopd.numerics import LossInput, Measure, TokenLosses

NAME = "what is minimised; choose it with loss=NAME"


@dataclass(kw_only=True, slots=True)
class Loss:
    """What is minimised. A subclass is one loss: `kind` has its name as default, and settings of its own may follow.

    Attributes:
        own_signal: what the teacher must say of a token where `loss.signal` is auto.
        over_vocabulary: an expectation over the vocabulary: no importance ratio belongs on it, for nothing in it
            depends on which token was sampled.
        called: its name in words.
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
    signal: str = setting(
        "auto",
        "what the teacher says of each token: sampled, its log-prob; top_k, also the likeliest tokens and theirs; "
        "full, hidden states and head, which give the whole distribution; auto: what the loss cannot do without",
        choices=("auto", "sampled", "top_k", "full"),
    )
    top_k: int = setting(
        64, "signal=top_k: how many of the teacher's likeliest tokens; records keep 8 bytes for each", low=1
    )
    tail: str = setting(
        "bucket",
        "signal=top_k: all other tokens are one category more, which keeps a divergence below the whole one; or both "
        "models are renormalised to the top_k, which biases it",
        choices=("bucket", "renormalize"),
    )
    skew: float = setting(
        0.0,
        "reverse_kl, forward_kl: α, the share of the first distribution in what it is compared with (DistiLLM, arXiv "
        "2402.03898): bounds the divergence by −log α nats; 0 for none",
        low=0,
        high=0.99,
    )
    shape: str = setting(
        "none",
        "policy_gradient: A_t is taken as it is, clipped to ±shape_bound, or sign(A) · log(1 + |A|) (arXiv 2607.13399)",
        choices=("none", "clip", "soft_log"),
    )
    shape_bound: float = setting(5.0, "policy_gradient: with shape=clip, the largest |A_t|, nats", above=0)
    baseline: str = setting(
        "none",
        "policy_gradient: kl adds KL(π_θ ‖ π_T) of the token's place to A_t (vOPD, arXiv 2605.07865): less noise and "
        "the same mean; needs signal=top_k or full",
        choices=("none", "kl"),
    )
    entropy_gate: float | None = setting(
        None,
        "where the teacher's entropy is above this, nats, add the forward KL over its entropy_gate_top_k likeliest "
        "tokens (EOPD, arXiv 2603.07079: 0.8); needs signal=top_k or full; null for none",
        low=0,
    )
    entropy_gate_top_k: int = setting(16, "tokens of that forward KL, to which both models are renormalised", low=2)

    own_signal = "sampled"
    over_vocabulary = False
    called = "policy gradient"

    @property
    def teacher_signal(self) -> Signal:
        """What the teacher is asked for."""
        kind = cast(SignalKind, self.own_signal if self.signal == "auto" else self.signal)
        return Signal(kind, self.top_k if kind == "top_k" else 0)

    @property
    def bounded(self) -> bool:
        """Whether single tokens are kept from outweighing all others: a sampled log-prob has no bound below."""
        return self.over_vocabulary or self.shape != "none"

    def needs_student_first(self, updates: int) -> bool:
        """Whether the student's log-probs must be recorded before the first of `updates` optimiser steps on a batch:
        A_t and the ratio are to the policy that all of them start from."""
        return updates > 1

    def trained(self) -> "dict[str, Measure]":
        """What gradients flow to, by field of `LossInput`; of signals beyond the sampled one."""
        if self.entropy_gate is None:
            return {}
        return {"gated": partial(numerics.gated_forward_kl, threshold=self.entropy_gate, k=self.entropy_gate_top_k)}

    def known(self) -> "dict[str, Measure]":
        """What else a value needs of both distributions, by field of `LossInput`; no gradients flow to it."""
        return {}

    def token_losses(self, given: "LossInput") -> "TokenLosses":
        """[batch, time], 0 outside the mask; weighted, not yet divided by anything."""
        raise NotImplementedError  # each loss has its own

    @property
    def categories(self) -> str:
        """What a divergence is made over, in words."""
        signal = self.teacher_signal
        if signal.kind == "top_k":
            rest = " and a bucket for the rest" if self.tail == "bucket" else ", renormalised to them"
            return f"the teacher's {signal.k} likeliest tokens{rest}"
        return "the whole vocabulary" if signal.kind == "full" else "the sampled tokens"

    def describe(self) -> str:
        """In words, with the distributions it is made of."""
        said = f"{self._skewed}{self.called} over {self.categories}" if self.over_vocabulary else self.called
        if self.entropy_gate is not None:
            said += (
                f", plus forward KL over the teacher's {self.entropy_gate_top_k} likeliest tokens where its entropy is "
                f"above {self.entropy_gate:g} nats"
            )
        return said

    @property
    def _skewed(self) -> str:
        return f"skewed (α = {self.skew:g}) " if self.skew else ""

    def problems(self) -> Iterator[str]:
        """What is wrong with the settings together, one line each."""
        if self.over_vocabulary:
            for key in ("shape", "baseline"):
                if getattr(self, key) != "none":
                    yield (
                        f"loss.{key}={getattr(self, key)}: is for the A_t of sampled tokens, and loss.kind={self.kind} "
                        "has none; use loss=policy_gradient"
                    )
            if self.exopd_lambda != 1:
                yield f"loss.exopd_lambda={self.exopd_lambda:g}: ExOPD is a policy gradient; use loss=policy_gradient"
        if self.skew and self.kind not in ("reverse_kl", "forward_kl"):
            yield f"loss.skew={self.skew:g}: loss.kind={self.kind} has none; use loss=reverse_kl or loss=forward_kl"
        if self.baseline != "none" and self.exopd_lambda != 1:
            yield f"loss.baseline={self.baseline}: centres OPD's A_t, not ExOPD's; set loss.exopd_lambda=1"
        yield from self._signal_problems()

    def _signal_problems(self) -> Iterator[str]:
        signal = self.teacher_signal
        needing = [
            *([f"loss.kind={self.kind}"] if self.over_vocabulary else []),
            *([f"loss.baseline={self.baseline}"] if self.baseline != "none" else []),
            *([f"loss.entropy_gate={self.entropy_gate:g}"] if self.entropy_gate is not None else []),
        ]
        if needing and signal.kind == "sampled":
            yield (
                f"{', '.join(needing)}: needs the teacher's distribution, and loss.signal={self.signal} has the "
                "log-prob of the sampled token alone; set loss.signal=top_k or loss.signal=full"
            )
        if signal.k == 1 and self.tail == "renormalize":
            yield (
                "loss.top_k=1: with loss.tail=renormalize both models are certain of that one token, so there is "
                "nothing to learn; raise it, or use loss.tail=bucket"
            )
        if self.entropy_gate is not None and signal.kind == "top_k" and self.entropy_gate_top_k > signal.k:
            yield (
                f"loss.entropy_gate_top_k={self.entropy_gate_top_k}: the signal has the {signal.k} likeliest tokens "
                "only; lower it, or raise loss.top_k"
            )
