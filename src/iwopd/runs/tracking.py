"""Where metrics go: metrics.jsonl is the truth, Weights & Biases a mirror of it."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from iwopd.errors import first_line
from iwopd.runs.files import flush, not_written, whole_lines

log = logging.getLogger(__name__)


class JsonLines:
    """An append-only file of one JSON object per line, flushed at each.

    Args:
        path: the file.
        size: bytes of it that a checkpoint vouches for; what comes after them is cut off, and what is torn at their
            end. None starts anew.
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


class Mirror(Protocol):
    """A second place for metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step."""
        ...

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A few rollouts with their weights."""
        ...

    def close(self) -> None:
        """Finish writing."""
        ...

    def abandon(self) -> None:
        """Let go of it after an error: nothing more is written, and nothing is left to fail at the program's end."""
        ...


class Tolerated:
    """A mirror whose errors end nothing: the first is a warning, and from then on it is left alone. Training continues,
    and metrics.jsonl has everything."""

    def __init__(self, mirror: Mirror):
        self._mirror = mirror
        self._works = True

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Mirror`."""
        self._try(lambda: self._mirror.log(step, metrics))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Mirror`."""
        self._try(lambda: self._mirror.samples(step, rows))

    def close(self) -> None:
        """See `Mirror`."""
        self._try(self._mirror.close)

    def _try(self, call: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            call()
        except Exception as error:  # of a service, a network, a full disk: each library has its own
            self._works = False
            log.warning(
                "%s stopped working (%s: %s); training continues without it, and metrics.jsonl has everything",
                type(self._mirror).__name__.removesuffix("Mirror").lower(),
                type(error).__name__,
                first_line(error),
            )
            with suppress(Exception):
                self._mirror.abandon()


class Tracker:
    """metrics.jsonl, samples.jsonl and positions.jsonl of a run folder, and mirrors of the first two.

    Args:
        sizes: what a checkpoint recorded with `state`; None starts anew.
        check: called before each writing; raises if the folder is somebody else's by now.
        step: of that checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        sizes: Mapping[str, int] | None = None,
        mirrors: Sequence[Mirror] = (),
        check: Callable[[], None] = lambda: None,
        step: float = math.inf,
    ):
        sizes = sizes or {}
        self.check = check
        self.metrics = JsonLines(folder / "metrics.jsonl", sizes.get("metrics"), step)
        self.rollouts = JsonLines(folder / "samples.jsonl", sizes.get("samples"), step)
        self.by_position = JsonLines(folder / "positions.jsonl", sizes.get("positions"), step)
        self.mirrors = [Tolerated(mirror) for mirror in mirrors]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line: the step, the time (seconds since 1970) and the metrics."""
        self.check()
        self.metrics.append([{"step": step, "time": round(time.time(), 3), **metrics}])
        for mirror in self.mirrors:
            mirror.log(step, metrics)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A few rollouts with per-token weights."""
        self.check()
        self.rollouts.append([{"step": step, **row} for row in rows])
        for mirror in self.mirrors:
            mirror.samples(step, rows)

    def positions(self, step: int, row: Mapping[str, Any]) -> None:
        """Means of one step by position; see `iwopd.training.positions`."""
        self.check()
        self.by_position.append([{"step": step, **row}])

    @property
    def state(self) -> dict[str, int]:
        """For checkpoints: how much of the files belongs to the steps taken so far; it is on the disk by then."""
        files = {"metrics": self.metrics, "samples": self.rollouts, "positions": self.by_position}
        return {name: file.sync() for name, file in files.items()}

    def close(self) -> None:
        """Close the mirrors."""
        for mirror in self.mirrors:
            mirror.close()


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
