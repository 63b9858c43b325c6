"""Which tokens count (`weighting`), what is minimised (`loss`) and how (`optim`)."""

from dataclasses import dataclass

from omegaconf import MISSING

from iwopd.config.setting import setting


@dataclass(kw_only=True, slots=True)
class WeightingConfig:
    """Which tokens count. Each scheme has a schema of its own, so a key of another scheme is an error."""

    scheme: str = setting(MISSING, "name of the scheme's formula; choose it with weighting=NAME")


@dataclass(kw_only=True, slots=True)
class UniformWeighting(WeightingConfig):
    """Every token alike: standard OPD."""


@dataclass(kw_only=True, slots=True)
class WindowWeighting(WeightingConfig):
    """Only a window of each response."""

    side: str = setting("first", "where the window lies", choices=("first", "last", "middle", "random"))
    fraction: float = setting(
        0.3, "share of the tokens kept, ceil(fraction · T)", above=0, high=1, fix="0.3 is the paper's window"
    )


@dataclass(kw_only=True, slots=True)
class IwWeighting(WeightingConfig):
    """Importance weights from the disagreement before a token; also reversed in time, and signed."""

    gamma: float = setting(0.5, "how much early tokens gain", low=0, fix="0 is uniform, the paper uses 0.5")


@dataclass(kw_only=True, slots=True)
class IwSurrogateWeighting(WeightingConfig):
    """Importance weights without the floor of 1."""


@dataclass(kw_only=True, slots=True)
class PrefixRatioWeighting(WeightingConfig):
    """The theory's raw prefix ratio r^α / Z."""

    alpha: float = setting(0.5, "power of the prefix ratio", above=0, high=1)
    gamma: float | None = setting(None, "null for the ratio alone, a number for 1 + gamma · ratio", low=0)


@dataclass(kw_only=True, slots=True)
class AnnealedPrefixWeighting(WeightingConfig):
    """The released code's prefix schemes: a prefix that grows over the training, boosted or alone."""

    start: float = setting(0.3, "share of the tokens in the prefix at the first step", above=0, high=1)
    end: float = setting(1.0, "share of the tokens in the prefix at the last step", above=0, high=1)
    anneal: str = setting("cosine", "shape of the growth", choices=("cosine", "linear"))


@dataclass(kw_only=True, slots=True)
class PrefixBoostWeighting(AnnealedPrefixWeighting):
    """A growing prefix weighted more than the rest."""

    boost: float = setting(1.5, "weight of the prefix; the rest has 1", above=0)


@dataclass(kw_only=True, slots=True)
class CustomWeighting(WeightingConfig):
    """A scheme of the user's own."""

    path: str = setting(MISSING, "pkg.module:function, from a WeightInput to weights [batch, time]; 0 leaves out")
    needs_batch: bool = setting(False, "the function must see the whole batch at once (one more student pass)")


# Losses that are expectations over the vocabulary: they need the teacher's whole distribution, and no importance ratio
# belongs on them, for nothing in them depends on which token was sampled.
OVER_VOCABULARY = ("reverse_kl",)


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """What is minimised."""

    kind: str = setting(
        "policy_gradient",
        "clipped sampled-token policy gradient, or full-vocabulary reverse KL",
        choices=("policy_gradient", "reverse_kl"),
    )
    normalize: str = setting(
        "kept",
        "the mean is over the tokens that the scheme keeps, all, or sequences",
        choices=("kept", "all", "sequence"),
    )
    clip_low: float = setting(0.2, "the ratio is clipped below 1 − clip_low", low=0, high=1)
    clip_high: float = setting(0.2, "the ratio is clipped above 1 + clip_high", low=0)
    dual_clip: float = setting(3.0, "where A < 0, the loss is at most dual_clip · |A|", above=1)
    importance_cap: float | None = setting(
        5.0,
        "cap of the importance ratio π_θ/π_sampler, which corrects for rollout.temperature and rounding, not for the "
        "tokens that top_p and top_k cut off; null for no correction; reverse_kl needs none",
        above=0,
    )
    exopd_lambda: float = setting(
        1.0, "λ of ExOPD (arXiv 2602.12125): above 1 goes beyond the teacher, away from the base model; 1 is OPD", low=0
    )

    @property
    def over_vocabulary(self) -> bool:
        """See `OVER_VOCABULARY`."""
        return self.kind in OVER_VOCABULARY


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW and how a batch goes through it."""

    lr: float = setting(1e-5, "peak learning rate", above=0)
    weight_decay: float = setting(0.01, "decoupled weight decay", low=0)
    betas: list[float] = setting([0.9, 0.999], "Adam's decay rates of the first and second moment")
    eps: float = setting(1e-8, "Adam's denominator term", above=0)
    grad_clip: float | None = setting(1.0, "largest gradient norm; null for no clipping", above=0)
    schedule: str = setting("constant", "after the warm-up", choices=("constant", "linear", "cosine"))
    warmup_steps: int = setting(
        0, "optimiser steps of linear warm-up; a rollout batch has updates_per_batch of them", low=0
    )
    final_lr: float = setting(0.0, "share of lr that linear and cosine end at", low=0, high=1)
    micro_batch_tokens: int = setting(32768, "tokens per forward and backward, padding included", low=1)
    updates_per_batch: int = setting(1, "optimiser steps per rollout batch, each on an equal share of it", low=1)
    autocast: bool = setting(False, "bfloat16 autocast in forward; weights keep student.dtype")
