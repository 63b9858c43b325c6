"""N copies of a command on this machine, the ranks of one job, and one exit status for all.

Unlike torchrun, the exit status of the first that failed is kept, a signal reaches every rank once, and rank 0 alone
has the terminal. Nobody is left behind: ranks that do not end after one of them has failed are stopped, then killed.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

from iwopd.parallel.environment import OUTPUT_KEPT

GRACE = 60.0  # seconds for the others after one has failed: they notice by a collective that breaks
SAVING = 900.0  # after one has stopped as it was asked to: another may still be writing
INSISTING = 15.0  # between SIGTERM and SIGKILL
SHOWN = 20  # last lines of a rank's output, where there is no file for it


class Job:
    """The ranks of one job.

    Args:
        command: what each rank is.
        count: how many.
        environment: beside this process's own.
        folder: where the output of a rank that failed is kept, once the job has made it.
    """

    def __init__(
        self, command: Sequence[str], count: int, environment: Mapping[str, str], folder: Path, grace: float = GRACE
    ):
        self.folder = folder
        self.grace = grace
        self.passed_on = list[int]()  # signals, in the order they came
        self._events = SimpleQueue[tuple[str, int, int]]()
        self._processes = list[subprocess.Popen[bytes]]()
        self._outputs = list[IO[bytes]]()
        self._statuses = dict[int, int]()
        self._command, self._count = list(command), count
        self._signals: Sequence[int] = ()
        self._closing = ExitStack()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
        self._environment = {
            **inherited,
            **environment,
            OUTPUT_KEPT: "1",
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }

    def run(self, signals: Sequence[int]) -> int:
        """Start the ranks and wait for all of them.

        Args:
            signals: are passed on to every rank: each once, but Ctrl-C as often as it comes.

        Returns:
            The exit status of the first that failed, 128 + n for one that signal n killed; else 0.
        """
        self._signals = signals
        with ExitStack() as self._closing:
            with self._handling():
                try:
                    for rank in range(self._count):
                        self._start(rank)
                    first = self._wait()
                finally:
                    self._signal(signal.SIGKILL)  # of what is left where this itself failed
            status = 0 if first is None else self._statuses[first]
            if first is not None and not self._stopped_in_order(status):
                self._explain(first)
            return status if status >= 0 else 128 - status

    # ------------------------------------------------------------------------------------------ processes

    def _start(self, rank: int) -> None:
        output = None if rank == 0 else self._closing.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        process = subprocess.Popen(
            self._command,
            env={**self._environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a terminal's Ctrl-C must not reach it twice, once from here
        )
        self._processes.append(process)
        self._outputs += [output] if output else []
        threading.Thread(
            target=lambda: self._events.put(("exit", rank, process.wait())), daemon=True, name=f"rank {rank}"
        ).start()

    def _wait(self) -> int | None:
        """Until all have ended; the first that failed."""
        first, deadline, insisted = None, None, False
        while len(self._statuses) < self._count:
            try:
                kind, which, status = self._events.get(timeout=deadline and max(0.0, deadline - time.monotonic()))
            except Empty:
                self._signal(signal.SIGKILL if insisted else signal.SIGTERM)
                deadline, insisted = time.monotonic() + INSISTING, True
                continue
            if kind == "signal":
                if which == signal.SIGINT or which not in self.passed_on:
                    self.passed_on.append(which)
                    self._signal(which)
                continue
            self._statuses[which] = status
            if status and first is None:
                first = which
                deadline = time.monotonic() + (SAVING if self._stopped_in_order(status) else self.grace)
        return first

    def _signal(self, number: int) -> None:
        for rank, process in enumerate(self._processes):
            if rank not in self._statuses:
                process.send_signal(number)

    @contextmanager
    def _handling(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # as in a sweep's launcher: signals go elsewhere
            yield
            return

        def note(number: int, _: object) -> None:
            self._events.put(("signal", number, 0))

        previous = {number: signal.signal(number, note) for number in self._signals}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    # ------------------------------------------------------------------------------------------ what is said

    def _stopped_in_order(self, status: int) -> bool:
        """Whether it is how a rank ends that did what a signal asked for, which came from here or to it alone."""
        return status - 128 in self._signals or -status in self.passed_on

    def _explain(self, first: int) -> None:
        """One line where rank 0, which has the terminal, cannot have said why the job failed."""
        status = self._statuses[first]
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
            how += ", as the system does where memory runs out" if status == -signal.SIGKILL else ""
        elif first != 0 and self._statuses[0] != status:
            how = f"failed with status {status}"
        else:
            return
        kept = self._keep_output(first) if first else ""
        print(f"iwopd: process {first} of {self._count} {how}, and the others ended with it{kept}", file=sys.stderr)

    def _keep_output(self, rank: int) -> str:
        """Where the output of a rank is, for the end of a sentence; without a folder, its last lines are printed."""
        output = self._outputs[rank - 1]
        if not output.seek(0, os.SEEK_END):
            return ""
        output.seek(0)
        if not (self.folder / "config.yaml").is_file():
            lines = output.read().decode(errors="replace").splitlines()[-SHOWN:]
            print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
            return ""
        file = self.folder / f"rank-{rank}.log"
        with file.open("wb") as kept:
            shutil.copyfileobj(output, kept)
        return f"; its output is in {file}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
