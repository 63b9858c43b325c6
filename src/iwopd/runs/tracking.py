"""Where metrics go: metrics.jsonl is the truth, trackers are mirrors of it."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from iwopd.redact import cleaned
from iwopd.runs.files import flush, not_written, whole_lines
from iwopd.runs.interrupts import ForcedStop
from iwopd.runs.mirrors import Mirrored, kept_rows, known_id, metrics_row, samples_row
from iwopd.tracking.base import TrackedRun, Tracking

log = logging.getLogger(__name__)


class JsonLines:
    """An append-only file of one JSON object per line, flushed at each.

    Args:
        path: the file.
        size: bytes of it that a checkpoint vouches for; what comes after them is cut off, and what is torn at their
            end. None starts from the beginning.
        step: the checkpoint's. Where bytes before it are missing, rows of later steps may stand in their place.
    """

    def __init__(self, path: Path, size: int | None = None, step: float = math.inf):
        self.path = path
        with self._guarded(), path.open("ab") as stream:
            kept = whole_lines(path, size or 0, step)
            stream.truncate(kept)
        if size and kept < size:
            log.warning("%s: %d of the %d bytes before the checkpoint are left; other rows are lost", path, kept, size)

    def sync(self) -> int:
        """Have what was written on the disk; how many bytes that are."""
        with self._guarded():
            flush(self.path)
            flush(self.path.parent)
            return self.path.stat().st_size

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows.

        Raises:
            RunFolderError: the disk is full.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self._guarded(), self.path.open("ab") as stream:
            stream.write(text.encode())

    def _guarded(self) -> "_Guard":
        return _Guard(self.path)


class _Guard:
    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise not_written(self.path, error) from error


class Tracker:
    """metrics.jsonl, samples.jsonl and positions.jsonl of a run folder, and trackers that mirror the first two; a
    context manager.

    Args:
        sizes: what a checkpoint recorded with `state`; None starts from the beginning.
        check: called before each writing; raises if the folder is somebody else's by now.
        step: of that checkpoint.
        name: what trackers call the run.
        config: all its settings, for trackers.
    """

    def __init__(
        self,
        folder: Path,
        sizes: Mapping[str, int] | None = None,
        trackers: Sequence[Tracking] = (),
        check: Callable[[], None] = lambda: None,
        step: float = math.inf,
        name: str = "",
        config: dict[str, Any] | None = None,
    ):
        sizes = sizes or {}
        self.check = check
        self.metrics = JsonLines(folder / "metrics.jsonl", sizes.get("metrics"), step)
        self.rollouts = JsonLines(folder / "samples.jsonl", sizes.get("samples"), step)
        self.by_position = JsonLines(folder / "positions.jsonl", sizes.get("positions"), step)
        kept, plain = partial(kept_rows, self.metrics.path, self.rollouts.path), cleaned(config or {})
        self.mirrors = [
            Mirrored(each, TrackedRun(folder, name or folder.name, plain, known_id(folder, each)), kept)
            for each in trackers
        ]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line: the step, the time (seconds since 1970) and the metrics."""
        self.check()
        self.metrics.append([{"step": step, "time": round(time.time(), 3), **metrics}])
        for mirror in self.mirrors:
            mirror.put(metrics_row(step, metrics))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A few rollouts with per-token weights."""
        self.check()
        self.rollouts.append([{"step": step, **row} for row in rows])
        for mirror in self.mirrors:
            mirror.put(samples_row(step, rows))

    def positions(self, step: int, row: Mapping[str, Any]) -> None:
        """Means of one step by position; see `iwopd.training.positions`."""
        self.check()
        self.by_position.append([{"step": step, **row}])

    @property
    def state(self) -> dict[str, int]:
        """For checkpoints: how much of the files belongs to the steps taken so far; it is on the disk by then."""
        files = {"metrics": self.metrics, "samples": self.rollouts, "positions": self.by_position}
        return {name: file.sync() for name, file in files.items()}

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait for trackers, unless nobody else does."""
        now = time.monotonic()
        for mirror in self.mirrors:
            mirror.close(now + (0.0 if isinstance(error, ForcedStop) else mirror.tracker.timeout_s))


class NoTracker:
    """Of a process whose metrics another one writes: it has the same."""

    def __init__(self) -> None:
        self.state: dict[str, int] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`."""

    def positions(self, step: int, row: Mapping[str, Any]) -> None:
        """See `Tracker`."""
