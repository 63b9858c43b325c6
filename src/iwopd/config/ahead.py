"""Where `rollout.ahead=1` cannot help, or would train on something else."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from iwopd.config.engines import HfRolloutConfig, VllmRolloutConfig

if TYPE_CHECKING:
    from iwopd.config import Config


def ahead_problems(config: "Config") -> Iterator[str]:
    """Settings that it does not go with: one line each."""
    if not config.rollout.ahead:
        return
    key, servers = f"rollout.ahead={config.rollout.ahead}", "use rollout=vllm_server, or rollout.ahead=0"
    if isinstance(config.rollout, HfRolloutConfig):
        yield (
            f"{key}: rollout=hf samples from the very model that the update changes, so it cannot do both at once; "
            + servers
        )
    if isinstance(config.rollout, VllmRolloutConfig):
        yield (
            f"{key}: rollout=vllm shares this process and its device with the update, which would wait for it; "
            + servers
        )
    if config.loss.importance_cap is None and not config.loss.over_vocabulary:
        yield (
            f"{key}: loss.importance_cap=null leaves out the importance correction, and responses are of the student "
            "before the last update; set loss.importance_cap=5.0, or rollout.ahead=0"
        )
    if config.scoring.student_logprobs == "sampler":
        yield (
            f"{key}: the sampler's log-probs are of the student before the last update, so A_t would be of another "
            "policy than the one that is trained; use scoring.student_logprobs=trainer, or rollout.ahead=0"
        )
