"""Processes that judge answers, and are killed and replaced when one takes too long."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from iwopd.errors import EngineError

START = 120.0  # seconds within which a process must be ready
MOST = 8  # processes

Line = dict[str, Any]


class Pool:
    """Has requests answered by a module of this package run as a program, in several processes.

    The program prints a line when it is ready; then it answers each line, JSON, by another. Processes start when there
    is something to do.

    They are started anew, not forked: they hold neither torch nor a GPU, and it does not matter from which thread or
    process they are started.

    Args:
        key: the setting that asks for it, for messages.
        module: the program.
        arguments: its arguments.
        seconds: for one request; a process that takes longer is killed.
    """

    def __init__(self, key: str, module: str, arguments: Sequence[str], seconds: float):
        self.key = key
        self.command = ["-m", module, *arguments]
        self.seconds = seconds
        self.count = min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, requests: Sequence[Line]) -> list[Line | None]:
        """An answer to each; None for one that was given up.

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

    def _ask(self, request: Line) -> Line | None:
        worker = self._take()
        found = worker.ask(request, self.seconds)
        with self._lock:
            if worker.alive and not self._closed:
                self._idle.append(worker)
            else:
                self._all.discard(worker)
        return found

    def _take(self) -> "Worker":
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.key}: stopped")
            if self._idle:
                return self._idle.pop()
            worker = Worker(self.command)
            self._all.add(worker)
        if worker.read(START) is None:
            raise EngineError(
                f"{self.key}: a process that judges answers does not start; see why with: {' '.join(worker.command)}"
            )
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

    def __init__(self, command: Sequence[str]):
        # -P: nothing in the current folder may pass for a module.
        self.command = [sys.executable, "-P", *command]
        source = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,  # Ctrl-C is for us
        )
        self._begun = b""
        self.alive = True

    def ask(self, request: Line, seconds: float) -> Line | None:
        """The answer; None where it took too long or ended, and then it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            self.kill()
            return None
        return self.read(seconds)

    def read(self, seconds: float) -> Line | None:
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
        """At once, with what it started."""
        self.alive = False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # something unsent was left in it
                    pipe.close()
