"""How long prompts, responses and the run are, as far as that is known before it."""

from dataclasses import dataclass

from iwopd.config import Config
from iwopd.training.schedule import Schedule


@dataclass(frozen=True)
class Lengths:
    """Tokens.

    Attributes:
        prompt: the longest.
        mean_prompt: on average.
        response: the longest while training.
        evaluated: the longest response of an evaluation; 0 without a benchmark.
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
    evaluated = (config.eval.max_tokens or rollout.max_tokens) if config.eval.benchmarks else 0
    if not prompts:
        return Lengths(most, most, response, evaluated)
    return Lengths(max(prompts), sum(prompts) / len(prompts), response, evaluated)


def mean_response(config: Config) -> int:
    """Tokens of a response while training: as `doctor.response_tokens` says, else the longest allowed."""
    longest = lengths(config).response
    return min(config.doctor.response_tokens or longest, longest)


def steps(config: Config) -> int:
    """Steps of the run; with a budget of tokens, as many as responses of `mean_response` leave."""
    return Schedule.of(config).expected_steps(config.data.batch_size * config.rollout.n * mean_response(config))


def steps_in_words(config: Config) -> str:
    """`40 steps`, or what a budget of tokens comes to."""
    found, budget = steps(config), config.run.tokens
    if budget is None:
        return f"{found:,} steps"
    about = "about" if config.doctor.response_tokens else "at least"
    return f"{budget:,} tokens (run.tokens), which are {about} {found:,} steps,"
