"""A process that starts programs: it has everything imported that they may use, and has never seen a problem.

Whoever judges sends it one end of a connection; the program answers at the other.
"""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time

import psutil

from iwopd.evaluation.grading import sandbox
from iwopd.evaluation.grading.judging import Program, Unconfined
from iwopd.evaluation.grading.program import run

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

    def end(self) -> bool:
        """End all programs, with what they have started; False where what starts them has ended itself."""
        try:
            self._control.send(END)
            return self._control.recv(1) == END
        except OSError:
            return False


def _serve(control: socket.socket, mode: str, seconds: float, memory: int) -> None:
    sandbox.die_with_parent()
    sandbox.adopt()
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)  # what comes there are problems
    keep = control.fileno()
    os.closerange(3, keep)
    os.closerange(keep + 1, 2**16)
    started, folders = list[int](), list[str]()
    while True:
        said, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if said == START:
            folders += [] if mode == "namespaces" else [tempfile.mkdtemp(prefix="iwopd-code-")]
            folder = folders[-1] if folders else ""
            started.append(sandbox.start(descriptors[0], lambda: run(3, memory), mode, folder, seconds))
        else:
            _end(started, mode)
            while folders:
                shutil.rmtree(folders.pop(), ignore_errors=True)
            if said != END:
                return
            control.send(END)


def _end(started: list[int], mode: str) -> None:
    """End all programs; they are this process's children, and so is what has left their parents."""
    if mode == "namespaces":
        for pid in started:  # not waited for yet, so the numbers are still theirs
            os.kill(pid, signal.SIGKILL)  # the program dies with it, and all that it started with the program
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
    else:
        _end_descendants()
    started.clear()


def _end_descendants() -> None:
    """Kill them; again, while some are born."""
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
