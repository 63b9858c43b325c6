"""What the loop measures beside the update's own metrics: seconds per stage, evaluations, sizes, memory."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iwopd.evaluation.evaluate import Evaluation
    from iwopd.machine.memory_watch import MemoryWatch
    from iwopd.types import ScoredRollout


class Clock:
    """Per stage, as metrics: seconds, and where memory is watched the most host memory it took, MiB."""

    def __init__(self, memory: "MemoryWatch | None" = None) -> None:
        self.seconds: dict[str, float] = {}
        self._memory = memory
        if memory is not None:
            memory.begin()
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """What was since the last lap was `stage`."""
        if self._memory is not None:
            self.seconds[f"memory/{stage}_mib"] = self._memory.lap(stage)
        now = time.perf_counter()
        self.seconds[f"time/{stage}_s"] = now - self._last
        self._last = now


def evaluation_metrics(found: "Sequence[Evaluation]") -> dict[str, float]:
    """Keys under eval/: of the one benchmark; of several, each under its name and the mean of all above them."""
    if len(found) == 1:
        return {f"eval/{name}": value for name, value in found[0].metrics.items()}
    metrics = {
        f"eval/{evaluation.benchmark}/{name}": value
        for evaluation in found
        for name, value in evaluation.metrics.items()
    }
    for name in ("accuracy", "pass_at_k"):
        metrics[f"eval/{name}"] = sum(evaluation.metrics[name] for evaluation in found) / len(found)
    return metrics


def sizes(scored: "Sequence[ScoredRollout]") -> dict[str, float]:
    """How long the responses are, and the tokens of one step."""
    rollouts = [record.rollout for record in scored]
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    return {
        "train/response_length": sum(lengths) / len(lengths),
        "train/truncated": sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        "tokens/generated": sum(lengths),
        "tokens/scored": sum(len(record.rollout.prompt_ids) + record.stop for record in scored),
    }


def gpu_memory(device: Any) -> dict[str, float]:
    """Peak of the memory PyTorch held on a GPU since it was last asked, MiB; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    import torch

    peak = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return {"memory/peak_mib": peak}
