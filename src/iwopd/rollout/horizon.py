"""How many tokens a training rollout may have: generate only what will be trained on (`rollout.horizon`)."""

import math
from collections.abc import Sequence

from iwopd.config import RolloutConfig
from iwopd.types import Rollout

EMA_DECAY = 0.5  # of the running mean of lengths: what an evaluation leaves of those before it


def horizon_tokens(rollout: RolloutConfig, progress: float, mean_response_length: float | None) -> int:
    """The longest response of a training step, tokens: at least 1, at most `rollout.max_tokens`.

    horizon + (horizon_end − horizon) · progress^horizon_power, rounded up. A `rollout.horizon` below 1 makes both ends
    shares of `mean_response_length`.

    Args:
        progress: share of the training done, 0 at the first step, 1 at the last.
        mean_response_length: running mean length of whole responses, tokens; see `running_mean_length`.

    Raises:
        ValueError: the horizon is a share, and no whole response was measured.
    """
    if rollout.horizon is None:
        return rollout.max_tokens
    end = rollout.horizon if rollout.horizon_end is None else rollout.horizon_end
    tokens = rollout.horizon + (end - rollout.horizon) * progress**rollout.horizon_power
    if rollout.horizon < 1:
        if mean_response_length is None:
            raise ValueError("a horizon that is a share of the length needs the lengths of an evaluation first")
        tokens *= mean_response_length
    # The small term undoes binary rounding, as in `iwopd.numerics.weighting.window_size`.
    return min(rollout.max_tokens, max(1, math.ceil(tokens - 1e-9)))


def running_mean_length(before: float | None, rollouts: Sequence[Rollout]) -> float:
    """The running mean length of whole responses, tokens, after one more evaluation.

    Training rollouts cannot tell it: their horizon cuts the long ones, and the mean of what ends by itself is too
    short. Evaluations are never cut by the horizon, so their lengths count alone, newer ones more.
    """
    mean = sum(len(rollout.response_ids) for rollout in rollouts) / len(rollouts)
    return mean if before is None else EMA_DECAY * before + (1 - EMA_DECAY) * mean
