"""TensorBoard as a mirror of the metrics: event files in the run's folder, for `tensorboard --logdir runs`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iwopd.setting import setting
from iwopd.tracking import samples
from iwopd.tracking.base import TrackedRun, Tracking


@dataclass(kw_only=True)
class TensorboardTracking(Tracking):
    """TensorBoard, in the run's folder."""

    name = package = "tensorboard"

    tensorboard: bool = setting(False, "also to TensorBoard: event files in tensorboard/ of the run")

    def start(self, run: TrackedRun) -> "TensorboardMirror":
        """See `Tracking`."""
        return TensorboardMirror(self, run)


class TensorboardMirror:
    """See `Mirror`; the files of a resumed run lie beside the earlier ones, and are shown as one run."""

    id = None

    def __init__(self, settings: TensorboardTracking, run: TrackedRun):
        self.writer = settings.library("torch.utils.tensorboard").SummaryWriter(str(run.folder / "tensorboard"))
        self.writer.add_text("config", _code(json.dumps(run.config, indent=2, ensure_ascii=False)))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Mirror`; what was logged is on the disk whenever the run is killed."""
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Mirror`: texts, each with its problem, and a figure."""
        for place, row in enumerate(rows):
            verdict = "right" if row["correct"] else "wrong"
            text = f"{_code(row['prompt'])}\n\n{_code(row['response'])}\n\n{verdict}, the answer is {row['answer']}"
            self.writer.add_text(f"samples/{place}", text, step)
        image = samples.figure(rows)
        if image is not None:
            self.writer.add_image("samples/by_position", image, step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """See `Mirror`."""
        self.writer.close()


def _code(text: str) -> str:
    """As a block of Markdown, which shows it as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
