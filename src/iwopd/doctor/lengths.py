"""How long prompts, responses and the run are, as far as that is known before it."""

from collections.abc import Sequence
from dataclasses import dataclass

from iwopd.config import Config
from iwopd.training.schedule import Schedule
from iwopd.types import Prompt


@dataclass(frozen=True)
class Lengths:
    """Tokens.

    Attributes:
        prompt: the longest.
        mean_prompt: on average.
        taught, mean_taught: the same of what the teachers read.
        response: the longest while training.
        evaluated: the longest response of an evaluation; 0 without a benchmark.
    """

    prompt: int
    mean_prompt: float
    taught: int
    mean_taught: float
    response: int
    evaluated: int


def lengths(config: Config, prompts: Sequence[Prompt] = ()) -> Lengths:
    """From the config, and the prompts' own lengths where they are known."""
    rollout, most = config.rollout, config.data.max_prompt_tokens
    horizon = rollout.horizon_end or rollout.horizon
    response = rollout.max_tokens
    if horizon is not None and horizon > 1:
        response = min(response, int(horizon))
    evaluated = (config.eval.max_tokens or rollout.max_tokens) if config.eval.benchmarks else 0
    if not prompts:
        return Lengths(most, most, most, most, response, evaluated)
    asked = [len(prompt.ids) for prompt in prompts]
    taught = [len(prompt.teacher_ids or prompt.ids) for prompt in prompts]
    means = (sum(counts) / len(counts) for counts in (asked, taught))
    (mean, mean_taught), longest = means, (max(asked), max(taught))
    return Lengths(longest[0], mean, longest[1], mean_taught, response, evaluated)


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
