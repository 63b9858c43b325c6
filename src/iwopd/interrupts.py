"""Ctrl-C and SIGTERM: never in the middle of a change to the weights."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}

FOLLOW = "IWOPD_FOLLOW"  # environment: id of the process that this one must not outlive


def follow_parent() -> None:
    """If this process is one of a study's, stop as by SIGTERM once the study's process is gone, however it ended."""
    parent = os.environ.pop(FOLLOW, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Stopped(KeyboardInterrupt):
    """The user, or the cluster, asked to stop; the weights are those of a whole step. `status` is the exit status."""

    def __init__(self, number: int):
        super().__init__()
        self.status = STATUS[signal.Signals(number)]


class ForcedStop(Stopped):
    """Asked twice, within a change to the weights: nothing can be saved."""


class Interrupts:
    """While open, SIGINT and SIGTERM raise `Stopped`: at once, or after a `deferred` block has ended."""

    def __init__(self) -> None:
        self._deferring = False
        self._pending: int | None = None

    def __enter__(self) -> "Interrupts":
        self._previous = {number: signal.signal(number, self._handle) for number in STATUS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that is carried out whole; asked a second time within it, `ForcedStop` ends it."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._pending is not None:
            number, self._pending = self._pending, None
            raise Stopped(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._deferring:
            raise Stopped(number)
        if self._pending is not None:
            raise ForcedStop(number)
        self._pending = number
