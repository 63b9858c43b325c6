"""The method's formulas as pure functions of tensors, for any trainer. No I/O, no config, no logging.

Tensors are ``[batch, time]`` over response tokens, log-probs in nats, masks boolean; padding may stand anywhere.
"""

from iwopd.numerics.advantage import exopd_advantage, opd_advantage
from iwopd.numerics.comparison import Comparison, chunked_comparison
from iwopd.numerics.logprobs import ChunkedScores, chunked_reverse_kl, chunked_token_logprobs, linear_token_logprobs
from iwopd.numerics.loss import LossResult, loss_scale, policy_loss, policy_token_losses
from iwopd.numerics.weighting import WeightInput, iw_weights, window_bounds, window_weights

__all__ = [
    "ChunkedScores",
    "Comparison",
    "LossResult",
    "WeightInput",
    "chunked_comparison",
    "chunked_reverse_kl",
    "chunked_token_logprobs",
    "exopd_advantage",
    "iw_weights",
    "linear_token_logprobs",
    "loss_scale",
    "opd_advantage",
    "policy_loss",
    "policy_token_losses",
    "window_bounds",
    "window_weights",
]
