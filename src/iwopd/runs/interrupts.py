"""Ctrl-C, and what schedulers and terminals send: never in the middle of a change to the weights."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from iwopd.machine import streams
from iwopd.parallel import world

# Ctrl-C; kill, docker and Kubernetes; a terminal or ssh session that ends; and what Slurm, LSF, PBS and SGE send some
# time before a job's end, or once its CPU time is spent. All but the first end a process where nobody handles them.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
# The others stay as they are found where somebody has decided on them: ignored (nohup, trap '' USR1), or handled by a
# launcher. SIGINT does not: shells ignore it for whatever they start in the background.
ALWAYS = (signal.SIGINT, signal.SIGTERM)

FOLLOW = "IWOPD_FOLLOW"  # environment: id of the process that this one must not outlive
LEFT_ALONE = 600.0  # seconds to save and end in, once it has gone


def ignore_schedulers() -> None:
    """For a program that is ending with everything saved: SIGXCPU, say, comes every second, and must not change its
    exit status.
    """
    for number in STOPPING:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)


def follow_parent() -> None:
    """If this process is one that another started, as a study's runs are and the ranks of one, stop as by SIGTERM once
    that one is gone, however it ended; and as by SIGKILL where that takes too long.
    """
    parent = os.environ.pop(FOLLOW, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LEFT_ALONE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class Stopped(KeyboardInterrupt):
    """The user, or the cluster, asked to stop; the weights are those of a whole step. `status` is the exit status."""

    def __init__(self, number: int):
        super().__init__(number)
        self.status = 128 + number


class Collapsed(Stopped):
    """Responses stop ending, and `run.on_collapse` says to stop there."""

    STATUS = 3

    def __init__(self) -> None:
        super().__init__(0)
        self.status = self.STATUS


class ForcedStop(Stopped):
    """Ctrl-C twice within a change to the weights: nothing can be saved."""


class Interrupts:
    """While open, the signals in STOPPING raise `Stopped`: at once, or after a `deferred` block has ended.

    So does a reader of standard output that went away, as if by SIGPIPE.

    With several processes, a signal to any of them stops all, at the same place: it is raised by `agree`, or at once
    within what waits for no other process.

    In a thread other than the main one, as where a program calls `distil`, signals are left to that program.
    """

    def __init__(self) -> None:
        self._several = world().size > 1
        self._depth = 0  # of blocks that are carried out whole
        self._pending: int | None = None
        self._pressed: float | None = None  # when Ctrl-C was, within such a block
        self._reader_gone = False

    def __enter__(self) -> "Interrupts":
        main = threading.current_thread() is threading.main_thread()
        handled = [each for each in STOPPING if main and (each in ALWAYS or signal.getsignal(each) == signal.SIG_DFL)]
        self._previous = {number: signal.signal(number, self._handle) or signal.SIG_DFL for number in handled}
        streams.when_reader_gone(self._stop_printing)
        if self._several:
            self._depth = 1
            world().stoppable = self._at_once
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        streams.when_reader_gone(None)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that is carried out whole; Ctrl-C a second time within it ends it by `ForcedStop`."""
        with self._whole():
            yield
        if self._pending is not None and not self._depth:
            number, self._pending = self._pending, None
            raise Stopped(number)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """What is left to do after `Stopped`: whole as if `deferred`, and to be asked again changes nothing."""
        with self._whole():
            yield
        self._pending = None

    def agree(self) -> None:
        """A place where all processes stop if one of them was asked to; with one process, nothing.

        Raises:
            Stopped: with the same status on all.
        """
        if not self._several:
            return
        asked = [number for number in world().gather(self._pending) if number is not None]
        if asked:
            self._pending = None
            raise Stopped(asked[0])

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Work of this process alone, which a signal ends, unless it is part of what is carried out whole. See
        `World.stoppable`."""
        if self._depth > 1:
            yield
            return
        self._depth = 0
        try:
            if self._pending is not None:
                raise Stopped(self._pending)
            yield
        finally:
            self._depth = 1

    @contextmanager
    def _whole(self) -> Iterator[None]:
        if not self._depth:
            self._pressed = None
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._reader_gone:
            number, self._reader_gone = signal.SIGPIPE, False
        if not self._depth:
            self._depth = int(self._several)  # on its way to where all agree, nothing more may end it
            raise Stopped(number)
        # Schedulers repeat themselves, and tell a study and its runs at the same time; only a person insists. Each of
        # several processes may get one Ctrl-C from the terminal and from the launcher.
        now = time.monotonic()
        if number == signal.SIGINT and self._pressed is not None:
            if not self._several or now - self._pressed > 1.0:
                raise ForcedStop(number)
        elif number == signal.SIGINT:
            self._pressed = now
        self._pending = self._pending or number

    def _stop_printing(self) -> None:
        """From whichever thread met it: the main thread stops."""
        self._reader_gone = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
