"""A process that starts programs: it has everything imported that they may use, and has never seen a problem.

Whoever judges sends it one end of a connection; the program answers at the other.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import time

from iwopd.grading import sandbox
from iwopd.grading.judging import Program, Unconfined
from iwopd.grading.program import run

START, END = b"s", b"e"


class Starter:
    """The process, forked from this one, which must not have seen a problem yet either.

    Args:
        mode: one of `sandbox.MODES`.
        seconds: of processor time for each program.
        memory: bytes of address space for each program.
    """

    def __init__(self, mode: str, seconds: float, memory: int):
        self._control, theirs = socket.socketpair()
        if os.fork() == 0:
            try:
                self._control.close()
                _serve(theirs, mode, seconds, memory)
            finally:
                os._exit(0)
        theirs.close()

    def start(self) -> Program:
        """Another program.

        Raises:
            Unconfined: its process could not be set up.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [START], [theirs.fileno()])
            except OSError as error:
                raise Unconfined(f"what starts programs has ended ({error.strerror})") from None
        return Program(ours)

    def end(self) -> None:
        """End all programs, with what they have started."""
        with contextlib.suppress(OSError):
            self._control.send(END)
            self._control.recv(1)


def _serve(control: socket.socket, mode: str, seconds: float, memory: int) -> None:
    sandbox.die_with_parent()
    sandbox.adopt()
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)  # what comes there are problems
    keep = control.fileno()
    os.closerange(3, keep)
    os.closerange(keep + 1, 2**16)
    folders: list[str] = []
    while True:
        said, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if said == START:
            folders.append(tempfile.mkdtemp(prefix="iwopd-code-"))
            sandbox.start(descriptors[0], lambda: run(3, memory), mode, folders[-1], seconds)
        elif said == END:
            end_children()
            while folders:
                shutil.rmtree(folders.pop(), ignore_errors=True)
            control.send(END)
        else:
            end_children()
            return


def end_children() -> None:
    """All descendants, those that have left their parents too; again, while some are born."""
    import psutil

    for _ in range(100):
        left = psutil.Process().children(recursive=True)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(0.01)
