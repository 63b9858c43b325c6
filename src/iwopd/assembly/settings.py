"""Settings of the stages."""

from dataclasses import replace

from iwopd.config import Config, ParityConfig, RolloutConfig, VllmRolloutConfig, VllmServerRolloutConfig
from iwopd.rollout.base import Sampling
from iwopd.training.parity import GapWatch


def sampling(rollout: RolloutConfig) -> Sampling:
    """The distribution rollouts are sampled from."""
    return Sampling(rollout.n, rollout.max_tokens, rollout.temperature, rollout.top_p, rollout.top_k)


def eval_sampling(config: Config) -> Sampling:
    """The distribution evaluations are sampled from."""
    ev = config.eval
    return Sampling(ev.n or ev.k, ev.max_tokens or config.rollout.max_tokens, ev.temperature, ev.top_p, ev.top_k)


def parity(rollout: RolloutConfig) -> ParityConfig | None:
    """How engine and trainer are compared after a sync; None where they are not."""
    match rollout:
        case VllmRolloutConfig(parity=limits) | VllmServerRolloutConfig(parity=limits) if limits.prompts:
            return replace(limits, max_tokens=min(limits.max_tokens, rollout.max_tokens))
        case _:
            return None


def gap_watch(rollout: RolloutConfig) -> GapWatch:
    """Watches the gap between sampler and trainer over a training; blind where another distribution is sampled from, or
    the student's of before the last update: what that moved is no fault."""
    limit = (parity(rollout) or ParityConfig()).warn
    return GapWatch(limit if sampling(rollout).plain and not rollout.ahead else float("inf"))
