"""What is wrong with how long training's responses may be (`rollout.horizon`, `rollout.stop_early`)."""

import math
from collections.abc import Iterator

from iwopd.config.engines import RolloutConfig
from iwopd.weighting import Weighting

ANY = 2**31  # tokens: longer than any response


def weighted_tokens(weighting: Weighting, progress: float, longest: int) -> int:
    """Tokens after which none can have weight, however long the response becomes; `longest` where that decides."""
    _, stop = weighting.bounds(longest, progress)
    return stop if weighting.bounds(stop, progress)[1] == stop else longest


def problems(rollout: RolloutConfig, weighting: Weighting, *, evaluated: bool) -> Iterator[str]:
    """One line each.

    Args:
        evaluated: there are evaluations, which measure lengths.
    """
    horizon, end = rollout.horizon, rollout.horizon_end
    if horizon is not None and horizon > 1 and horizon % 1:
        yield (
            f"rollout.horizon={horizon}: neither a share below 1 nor a whole number of tokens; "
            f"use {math.ceil(horizon)} tokens, or a share such as 0.3"
        )
    if horizon is not None and 0 < horizon < 1 and not evaluated:
        yield (
            f"rollout.horizon={horizon}: is a share of the mean length of whole responses, which evaluations measure, "
            "and there is no benchmark; choose one, or give the horizon in tokens"
        )
    if end is not None and horizon is None:
        yield f"rollout.horizon_end={end}: there is no horizon to grow from; set rollout.horizon too"
    elif end is not None and horizon is not None and end < horizon:
        yield f"rollout.horizon_end={end}: below rollout.horizon={horizon}; raise it, or leave it out"
    if rollout.ahead and rollout.stop_early not in ("none", "weightless"):
        yield (
            f"rollout.stop_early={rollout.stop_early}: is decided piece by piece, while with rollout.ahead="
            f"{rollout.ahead} nobody waits for the pieces; use rollout.ahead=0"
        )
    if rollout.stop_early == "weightless" and weighted_tokens(weighting, 0.0, ANY) == ANY:
        yield (
            f"rollout.stop_early=weightless: with weighting={weighting.name} a token of any response may have weight "
            "before its length is known; use weighting=first_k, or rollout.horizon"
        )
