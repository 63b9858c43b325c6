"""Trackers beside metrics.jsonl. Each has a thread of its own, so that one that is slow, hangs or fails costs the run
nothing; what it missed it gets when the run is resumed, and what it has it does not get again."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from iwopd.errors import ConfigError, first_line
from iwopd.runs.files import read_rows
from iwopd.tracking.base import Mirror, TrackedRun, Tracking

log = logging.getLogger(__name__)

PENDING = 1000  # rows it has not taken; one that is further behind is given up
AFTER_KILL = 5.0  # seconds to leave in, for one that was given up and for what it had under way
ON = "training continues without it, and metrics.jsonl has everything"

METRICS, EVALUATION, SAMPLES = range(3)  # what is logged of one step, in this order
Mark = tuple[int, int]  # of a row: its step, and which of these it is
Row = tuple[Mark, Callable[[Mirror], None]]


def metrics_row(step: int, metrics: Mapping[str, float]) -> Row:
    """For `Mirrored.put`: what a step or an evaluation measured."""
    part = EVALUATION if any(key.startswith("eval/") for key in metrics) else METRICS
    return (step, part), lambda mirror: mirror.log(step, metrics)


def samples_row(step: int, rows: Sequence[Mapping[str, Any]]) -> Row:
    """The same of an evaluation's responses."""
    return (step, SAMPLES), lambda mirror: mirror.samples(step, rows)


def kept_rows(metrics: Path, samples: Path, after: Mark) -> Iterator[Row]:
    """What a run's files have after `after`, in the order in which it was logged."""
    found = list[Row]()
    for row in read_rows(metrics):
        values = {key: value for key, value in row.items() if key not in ("step", "time")}
        found.append(metrics_row(row["step"], values))
    if not found or max(mark for mark, _ in found) <= after:
        return
    for step, rows in groupby(read_rows(samples), lambda row: row["step"]):
        found.append(samples_row(step, list(rows)))
    yield from sorted((row for row in found if row[0] > after), key=lambda row: row[0])


class Mirrored:
    """One tracker.

    Two files in the run's folder remember NAME_id, by which the tracker finds the run again, and NAME_logged, the last
    row that it was given.

    Args:
        kept: gives what the run's files have after a mark.
    """

    def __init__(self, tracker: Tracking, run: TrackedRun, kept: Callable[[Mark], Iterator[Row]]):
        self.tracker = tracker
        self.run = run
        self._logged = run.folder / f"{tracker.name}_logged"
        self._mark = self._read_mark()
        self._earlier = list(kept(self._mark))
        self._queue = SimpleQueue[Row | None]()
        self._works = True
        self._leaving = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=tracker.name, daemon=True)
        self._thread.start()

    def put(self, row: Row) -> None:
        """To be logged soon, unless it was before the run was resumed."""
        if self._works and self._queue.qsize() >= PENDING:
            self._give_up(f"{self.tracker.name} does not take what it is given, {PENDING} rows are waiting; {ON}")
        elif self._works:
            self._queue.put(row)

    def close(self, until: float) -> None:
        """Wait for it to take what is left, until that time of the monotonic clock."""
        with self._leaving:
            if not self._works:
                return
        self._queue.put(None)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            name = self.tracker.name
            self._give_up(f"{name} does not answer; the run ends without it, and metrics.jsonl has everything")

    def _work(self) -> None:
        said = "does not start"
        try:
            known = self.run.folder / f"{self.tracker.name}_id"
            mirror = self.tracker.start(self.run)
            said = "stopped working"
            if mirror.id is not None:
                known.write_text(mirror.id, encoding="utf-8")
            for row in self._rows():
                if not self._works:
                    break
                self._take(mirror, *row)
            if self._works:
                mirror.close()
        except (Exception, SystemExit) as error:  # of a service, a network, a full disk: each library has its own
            reason = f"{type(error).__name__}: {first_line(error)}"
            told = str(error) if isinstance(error, ConfigError) else f"{self.tracker.name} {said} ({reason})"
            self._give_up(f"{told}; {ON}")
        if not self._works:  # what was under way then may have started its service anew
            self._abandon()

    def _rows(self) -> Iterator[Row]:
        yield from self._earlier
        self._earlier = []
        yield from iter(self._queue.get, None)

    def _take(self, mirror: Mirror, mark: Mark, call: Callable[[Mirror], None]) -> None:
        if mark <= self._mark:
            return
        self._mark = mark  # first, for a kill in between: a row that is missing there is in metrics.jsonl
        self._logged.write_text(json.dumps(mark), encoding="utf-8")
        call(mirror)

    def _read_mark(self) -> Mark:
        with suppress(OSError, ValueError, TypeError):
            step, part = json.loads(self._logged.read_text(encoding="utf-8"))
            return int(step), int(part)
        return (-1, METRICS)

    def _give_up(self, why: str) -> None:
        """Say it once, and let go of it; in a thread, as its library may hang in that too."""
        with self._leaving:
            if not self._works:
                return
            self._works = False
            log.warning("%s", why)
            leaving = threading.Thread(target=self._abandon, daemon=True)
            leaving.start()
            until = time.monotonic() + AFTER_KILL
            leaving.join(AFTER_KILL)
        if self._thread is not threading.current_thread():
            self._thread.join(max(0.0, until - time.monotonic()))  # it ends what it started meanwhile

    def _abandon(self) -> None:
        with suppress(Exception, SystemExit):
            self.tracker.abandon()


def known_id(folder: Path, tracker: Tracking) -> str | None:
    """The id that a tracker gave the run in `folder`; None where it has not."""
    file = folder / f"{tracker.name}_id"
    return file.read_text(encoding="utf-8").strip() or None if file.exists() else None
