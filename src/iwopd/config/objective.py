"""Which KL is it? What a training minimises, in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iwopd.config import Config


def describe_objective(config: "Config") -> str:
    """What a training minimises, in words: which divergence of which distributions, and which tokens count."""
    said = config.loss.describe()
    if config.reward.weight:
        said += f", plus {config.reward.weight:g} × the task's reward"
    return f"{said}, weighted by {config.weighting.name}"
