"""The method's formulas as pure functions of tensors, for any trainer. No I/O, no config, no logging.

Tensors are ``[batch, time]`` over response tokens, log-probs in nats, masks boolean; padding may stand anywhere.

Torch loads with the first formula that is asked for: what only names formulas, such as the config, needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iwopd.numerics.advantage import exopd_advantage, group_advantages, opd_advantage, shaped
    from iwopd.numerics.categories import (
        Categories,
        Measure,
        TokenSignal,
        chunked_measures,
        chunked_top_k,
        full_signal,
        measures_of_parts,
        token_logprobs,
        top_k_categories,
        top_k_signal,
    )
    from iwopd.numerics.comparison import Comparison, chunked_comparison, comparison_measures
    from iwopd.numerics.divergence import (
        ChunkedScores,
        Divergence,
        advantage_baseline,
        chunked_divergence,
        chunked_scores,
        forward_kl,
        gated_forward_kl,
        jsd,
        measure_of,
        reverse_kl,
        skew_forward_kl,
        skew_reverse_kl,
    )
    from iwopd.numerics.logprobs import Head, chunked_token_logprobs, linear_token_logprobs
    from iwopd.numerics.loss import (
        LossInput,
        LossResult,
        TokenLosses,
        divergence_token_losses,
        loss_scale,
        policy_loss,
        policy_token_losses,
        with_gate,
    )
    from iwopd.numerics.weighting import (
        WeightInput,
        annealed_fraction,
        fixed_window_weights,
        iw_reversed_weights,
        iw_signed_weights,
        iw_surrogate_weights,
        iw_weights,
        prefix_boost_weights,
        prefix_ratio_weights,
        random_window_weights,
        window_bounds,
        window_weights,
    )

MODULES = ("advantage", "categories", "comparison", "divergence", "logprobs", "loss", "weighting")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in MODULES:
            found = vars(import_module(f"{__name__}.{module}"))
            if name in found:
                globals()[name] = found[name]
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Categories",
    "ChunkedScores",
    "Comparison",
    "Divergence",
    "Head",
    "LossInput",
    "LossResult",
    "Measure",
    "TokenLosses",
    "TokenSignal",
    "WeightInput",
    "advantage_baseline",
    "annealed_fraction",
    "chunked_comparison",
    "chunked_divergence",
    "chunked_measures",
    "chunked_scores",
    "chunked_token_logprobs",
    "chunked_top_k",
    "comparison_measures",
    "divergence_token_losses",
    "exopd_advantage",
    "fixed_window_weights",
    "forward_kl",
    "full_signal",
    "gated_forward_kl",
    "group_advantages",
    "iw_reversed_weights",
    "iw_signed_weights",
    "iw_surrogate_weights",
    "iw_weights",
    "jsd",
    "linear_token_logprobs",
    "loss_scale",
    "measure_of",
    "measures_of_parts",
    "opd_advantage",
    "policy_loss",
    "policy_token_losses",
    "prefix_boost_weights",
    "prefix_ratio_weights",
    "random_window_weights",
    "reverse_kl",
    "shaped",
    "skew_forward_kl",
    "skew_reverse_kl",
    "token_logprobs",
    "top_k_categories",
    "top_k_signal",
    "window_bounds",
    "window_weights",
    "with_gate",
]
