"""What the loop measures beside the update's own metrics: sizes, GPU memory."""

from collections.abc import Sequence
from statistics import fmean

import torch

from iwopd.types import ScoredRollout


def sizes(scored: Sequence[ScoredRollout]) -> dict[str, float]:
    """How long the responses are, and the tokens of one step."""
    rollouts = [record.rollout for record in scored]
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    return {
        "train/response_length": sum(lengths) / len(lengths),
        "train/truncated": sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        "tokens/generated": sum(lengths),
        "tokens/scored": sum(len(record.rollout.as_taught.prompt_ids) + record.stop for record in scored),
    }


def staleness(scored: Sequence[ScoredRollout], updates: int) -> float:
    """Optimiser steps that the student has taken since it wrote the responses, the mean over them.

    Args:
        updates: all that it has taken.
    """
    return updates - fmean(record.rollout.policy_version for record in scored)


def gpu_memory(device: torch.device) -> dict[str, float]:
    """Peak of the memory PyTorch held on a GPU since it was last asked, MiB; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return {"memory/peak_mib": peak}
