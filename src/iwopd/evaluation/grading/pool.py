"""Processes that judge answers, and are killed and replaced when one takes too long."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import iwopd
from iwopd.errors import EngineError
from iwopd.evaluation.grading.lines import Broken, Fields, Late, Lines, Message

START = 120.0  # seconds within which a process must be ready
MOST = 8  # processes
TRIES = 2  # of a request whose process ended or said what is no answer; another's doing, perhaps


class Pool:
    """Has requests answered by a module of this package run as a program, in several processes.

    The program is given a descriptor to answer at. It says when it is ready, and then answers each line, JSON, by
    another. Processes start when there is something to do.

    They are new processes, not forked: they hold neither torch nor a GPU, and it does not matter from which thread or
    process they are started.

    Args:
        key: the setting that asks for it, for messages.
        module: the program.
        arguments: its arguments.
        seconds: for one request; a process that takes longer is killed.
        fields: of an answer, and their types.
        environment: all that they have of it, but for where modules are; None for all of ours.
    """

    def __init__(
        self,
        key: str,
        module: str,
        arguments: Sequence[str],
        seconds: float,
        fields: Fields,
        environment: Mapping[str, str] | None = None,
    ):
        self.key = key
        self.module, self.arguments = module, arguments
        self.seconds, self.fields, self.environment = seconds, fields, environment
        self.count = min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, requests: Sequence[Message]) -> list[Message | None]:
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

    def _ask(self, request: Message) -> Message | None:
        for _ in range(TRIES):
            worker = self._take()
            try:
                found = worker.ask(request, self.fields, self.seconds)
            except Broken as error:
                worker.kill()
                with self._lock:
                    self._all.discard(worker)
                if isinstance(error, Late) or self._closed:
                    return None
            else:
                with self._lock:
                    if not self._closed:
                        self._idle.append(worker)
                return found
        return None

    def _take(self) -> "Worker":
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.key}: stopped")
            while self._idle:
                worker = self._idle.pop()
                if worker.lines.quiet:
                    return worker
                self._all.discard(worker)
                worker.kill()
            worker = Worker(self.module, self.arguments, self.environment)
            self._all.add(worker)
        problem = worker.problem()
        if problem is not None:
            worker.kill()
            raise EngineError(f"{self.key}: a process that judges answers does not start: {problem}")
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

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str] | None):
        source = str(Path(iwopd.__file__).parents[1])
        known = os.environ if environment is None else environment
        reading, writing = os.pipe()  # not its standard output, where libraries and programs may write
        # -P: nothing in the current folder may pass for a module.
        self.command = [sys.executable, "-P", "-m", module, str(writing), *arguments]
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writing],
            env={**known, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,  # Ctrl-C is for us
        )
        os.close(writing)
        assert self._process.stdin is not None
        self.lines = Lines(reading, self._process.stdin.fileno())
        self._lock = threading.Lock()  # held while a request is under way: the descriptors stay open
        self._alive = True

    def problem(self) -> str | None:
        """Why it does not start; None when it is ready."""
        try:
            with self._lock:
                found = self.lines.receive(time.monotonic() + START)
        except Broken:
            return f"see why with: {' '.join(self.command)}"
        return None if found.get("ready") is True else str(found.get("problem"))

    def ask(self, request: Message, fields: Fields, seconds: float) -> Message:
        """See `Lines.ask`."""
        with self._lock:
            if not self._alive:
                raise Broken("ended")
            return self.lines.ask(request, fields, seconds)

    def kill(self) -> None:
        """At once, with what it started; whoever waits for its answer gets an error that it has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with self._lock:
            if self._alive:
                self._alive = False
                os.close(self.lines.reading)
                assert self._process.stdin is not None
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
