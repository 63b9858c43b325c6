"""How long prompts and responses are, as far as that is known before a run."""

from dataclasses import dataclass

from iwopd.config import Config


@dataclass(frozen=True)
class Lengths:
    """Tokens.

    Attributes:
        prompt: the longest.
        mean_prompt: on average.
        response: the longest while training.
        evaluated: the longest response of an evaluation.
    """

    prompt: int
    mean_prompt: float
    response: int
    evaluated: int


def lengths(config: Config, prompts: list[int] | None = None) -> Lengths:
    """From the config, and the prompts' own lengths where they are known."""
    rollout, most = config.rollout, config.data.max_prompt_tokens
    horizon = rollout.horizon_end or rollout.horizon
    response = rollout.max_tokens
    if horizon is not None and horizon > 1:
        response = min(response, int(horizon))
    evaluated = config.eval.max_tokens or rollout.max_tokens
    if not prompts:
        return Lengths(most, most, response, evaluated)
    return Lengths(max(prompts), sum(prompts) / len(prompts), response, evaluated)
