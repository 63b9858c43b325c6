"""Training runs as processes of their own, several at a time; stopped together, each with its checkpoint saved."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwopd.errors import RunFolderError
from iwopd.machine.runtime import WORKERS
from iwopd.runs.files import read_object, write_whole
from iwopd.runs.interrupts import FOLLOW, Collapsed

# Beside metrics.jsonl, once a run has ended: what its process needed.
PROCESS_FILE = "process.json"


@dataclass(frozen=True)
class Outcome:
    """How a run's process ended: its exit status, and the line it left if it failed."""

    status: int
    reason: str = ""


def train(
    arguments: Sequence[str],
    folder: Path,
    started: Callable[[Any], None] = lambda process: None,
    *,
    workers: int | None = None,
) -> Outcome:
    """`iwopd train ARGUMENTS` as a process, to its end; asked to stop here, it gets one signal and is waited for.

    Args:
        folder: the run's; the peak of the process's resident memory (MiB) is noted there.
        started: called with the process.
        workers: processes that share this machine's cores, this one among them; None for what the environment says.
    """
    environment = {**os.environ, FOLLOW: str(os.getpid())}
    if workers is not None:
        environment[WORKERS] = str(workers)
    environment.pop("HYDRA_FULL_ERROR", None)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "iwopd", "train", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C must not reach it twice, once from here
        )
        began = time.time()
        started(process)
        try:
            peak = _wait(process)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            _wait(process)
            raise
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
    if folder.is_dir():
        _note(folder, peak_mib=peak, seconds=time.time() - began)
    silent = (
        "its responses stopped ending; see its train.log"
        if process.returncode == Collapsed.STATUS
        else "it left no message"
    )
    said = next((line for line in lines if line.startswith("iwopd: ")), lines[-1] if lines else silent)
    return Outcome(process.returncode, said.removeprefix("iwopd: ") if process.returncode else "")


def _wait(process: "subprocess.Popen[bytes]") -> float:
    """Wait for a process; the peak of its resident memory, MiB."""
    if process.returncode is not None:
        return 0.0
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return usage.ru_maxrss * unit / 2**20


def _note(folder: Path, *, peak_mib: float, seconds: float) -> None:
    """Add to what earlier parts of an interrupted run needed."""
    file = folder / PROCESS_FILE
    earlier = read_note(folder)
    note = {
        "peak_mib": round(max(peak_mib, earlier.get("peak_mib", 0.0)), 1),
        "seconds": round(seconds + earlier.get("seconds", 0.0), 1),
    }
    with contextlib.suppress(RunFolderError):  # a full disk: the run itself has said so
        write_whole(file, json.dumps(note) + "\n")


def read_note(folder: Path) -> dict[str, float]:
    """What `train` noted of a run: peak_mib, and seconds from start to end, start-up included."""
    return read_object(folder / PROCESS_FILE) or {}


class Workers:
    """At most `count` training processes at one time."""

    def __init__(self, count: int):
        self.count = count
        self._lock = threading.Lock()
        self._running: set[Any] = set()
        self._stopping = False

    def run(self, jobs: Sequence[tuple[Sequence[str], Path]], ended: Callable[[int, Outcome], None]) -> None:
        """Carry out all jobs (arguments, folder); `ended(index, outcome)` is called as each ends, in its thread.

        Raises:
            Stopped: once every process has saved its checkpoint and is gone.
        """
        pool = ThreadPoolExecutor(max_workers=self.count)
        futures = [pool.submit(self._one, *job, ended, index) for index, job in enumerate(jobs)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            self._signal(signal.SIGTERM)
            try:
                pool.shutdown(wait=True, cancel_futures=True)
            except BaseException:  # asked again
                self._signal(signal.SIGKILL)
                pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            pool.shutdown(wait=True)

    def _one(self, arguments: Sequence[str], folder: Path, ended: Callable[[int, Outcome], None], index: int) -> None:
        process: Any = None

        def started(made: Any) -> None:
            nonlocal process
            process = made
            with self._lock:
                self._running.add(made)
                if self._stopping:
                    os.kill(made.pid, signal.SIGTERM)

        if self._stopping:
            return
        try:
            outcome = train(arguments, folder, started, workers=self.count)
        finally:
            with self._lock:
                self._running.discard(process)
        if not self._stopping:
            ended(index, outcome)

    def _signal(self, number: int) -> None:
        with self._lock:
            self._stopping = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
