"""Processes that compare answers, and are killed and replaced when one takes too long."""

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from iwopd.errors import EngineError

MEMORY = 2 * 2**30  # bytes of address space per process
START = 120.0  # seconds within which a process must be ready
MOST = 8  # processes

Request = dict[str, str]


class Pool:
    """Answers requests of `iwopd.grading.worker` in processes of their own, started when there is something to do.

    They are started anew, not forked: they hold neither torch nor a GPU, and it does not matter from which thread or
    process they are started.

    Args:
        seconds: for one request; a process that takes longer is killed.
        count: processes at one time; None for one per core, 8 at most.
    """

    def __init__(self, seconds: float, count: int | None = None):
        self.seconds = seconds
        self.count = count or min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, requests: Sequence[Request]) -> list[bool | None]:
        """A verdict on each; None for one that was given up.

        Raises:
            EngineError: no process starts.
        """
        if not requests:
            return []
        self._closed = False
        executor = ThreadPoolExecutor(min(self.count, len(requests)), thread_name_prefix="grading")
        try:
            return list(executor.map(self._ask, requests))
        except BaseException:
            self.close()  # what is under way ends with its process
            raise
        finally:
            executor.shutdown(cancel_futures=True)

    def _ask(self, request: Request) -> bool | None:
        worker = self._take()
        verdict = worker.ask(request, self.seconds)
        with self._lock:
            if worker.alive and not self._closed:
                self._idle.append(worker)
            else:
                self._all.discard(worker)
        return verdict

    def _take(self) -> "Worker":
        with self._lock:
            if self._closed:
                raise EngineError("grader=math: stopped")
            if self._idle:
                return self._idle.pop()
            worker = Worker(self.seconds)
            self._all.add(worker)
        worker.wait()
        return worker

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._closed = True
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            worker.kill()


class Worker:
    """One process."""

    def __init__(self, seconds: float):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_source(), os.environ.get("PYTHONPATH", "")])}
        self._process = subprocess.Popen(
            # -P: nothing in the current folder may pass for a module.
            [sys.executable, "-P", "-m", "iwopd.grading.worker", str(seconds), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us
        )
        self._begun = b""
        self.alive = True

    def wait(self) -> None:
        """Until it can be asked.

        Raises:
            EngineError: it does not start.
        """
        if self._read(START) is None:
            status = self._process.returncode
            raise EngineError(
                f"grader=math: a process that compares answers does not start (status {status}); "
                f"try: {sys.executable} -m iwopd.grading.worker 5 {MEMORY}"
            )

    def ask(self, request: Request, seconds: float) -> bool | None:
        """The verdict; None where it took too long or ended, and then it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self.kill()
            return None
        found = self._read(seconds)
        return None if found is None else bool(found["verdict"])

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None, and the process killed, where none comes in time."""
        assert self._process.stdout is not None
        limit = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            try:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                while b"\n" not in self._begun:
                    left = limit - time.monotonic()
                    chunk = os.read(self._process.stdout.fileno(), 65536) if left > 0 and selector.select(left) else b""
                    if not chunk:
                        self.kill()
                        return None
                    self._begun += chunk
            except (OSError, ValueError):  # closed while it was waited for
                self.kill()
                return None
        line, _, self._begun = self._begun.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        """At once."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # something unsent was left in it
                    pass


def _source() -> str:
    """The folder that this package is imported from."""
    return str(Path(__file__).parents[2])
