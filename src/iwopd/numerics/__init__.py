"""The method's formulas as pure functions of tensors, for any trainer. No I/O, no config, no logging.

Tensors are ``[batch, time]`` over response tokens, log-probs in nats, masks boolean; padding may stand anywhere.

Torch loads with the first formula that is asked for: what only names formulas, such as the config, needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iwopd.numerics.advantage import exopd_advantage, opd_advantage
    from iwopd.numerics.comparison import Comparison, chunked_comparison
    from iwopd.numerics.divergence import ChunkedScores, Divergence, chunked_divergence, forward_kl, jsd, reverse_kl
    from iwopd.numerics.logprobs import Head, chunked_token_logprobs, linear_token_logprobs
    from iwopd.numerics.loss import (
        LossInput,
        LossResult,
        TokenLosses,
        divergence_token_losses,
        loss_scale,
        policy_loss,
        policy_token_losses,
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

MODULES = ("advantage", "comparison", "divergence", "logprobs", "loss", "weighting")


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in MODULES:
            found = vars(import_module(f"{__name__}.{module}"))
            if name in found:
                globals()[name] = found[name]
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ChunkedScores",
    "Comparison",
    "Divergence",
    "Head",
    "LossInput",
    "LossResult",
    "TokenLosses",
    "WeightInput",
    "annealed_fraction",
    "chunked_comparison",
    "chunked_divergence",
    "chunked_token_logprobs",
    "divergence_token_losses",
    "exopd_advantage",
    "fixed_window_weights",
    "forward_kl",
    "iw_reversed_weights",
    "iw_signed_weights",
    "iw_surrogate_weights",
    "iw_weights",
    "jsd",
    "linear_token_logprobs",
    "loss_scale",
    "opd_advantage",
    "policy_loss",
    "policy_token_losses",
    "prefix_boost_weights",
    "prefix_ratio_weights",
    "random_window_weights",
    "reverse_kl",
    "window_bounds",
    "window_weights",
]
