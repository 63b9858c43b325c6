"""Standard output and error whose loss costs no run: a reader that went away (`| head`), a closed descriptor, a full
disk, a terminal that is gone, a character that the encoding lacks.

Text that cannot be written is dropped, never raised where it was printed. Only a reader of standard output that went
away asks the program to end, as SIGPIPE would, with status 141: at once, or as `when_reader_gone` says.
"""

import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BROKEN_PIPE = 128 + signal.SIGPIPE  # exit status
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ESHUTDOWN)


def _end() -> None:
    raise SystemExit(BROKEN_PIPE)


_reader_gone: Callable[[], None] = _end


def when_reader_gone(call: Callable[[], None] | None) -> None:
    """What happens, once, when nobody reads standard output any more; None: the program ends with status 141."""
    global _reader_gone
    _reader_gone = call or _end


def install() -> None:
    """Make this process's standard streams such; for a program's entry point, before anything is printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed by `>&-`: the next file opened would get its number, and what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _tolerant(sys.stdout, 1, lambda: _reader_gone())
    sys.stderr = _tolerant(sys.stderr, 2, None)


def _tolerant(stream: TextIO | None, descriptor: int, gone: Callable[[], None] | None) -> TextIO:
    """A text stream to `descriptor`, set up as `stream`, that raises nothing of its own."""
    with suppress(OSError, ValueError):
        if stream is not None:
            stream.flush()
    raw = _Tolerant(descriptor, gone)
    unbuffered = bool(getattr(stream, "write_through", False))  # python -u
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # pyright: ignore[reportArgumentType]  as Python itself does
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
        write_through=unbuffered,
    )


class _Tolerant(io.FileIO):
    def __init__(self, descriptor: int, gone: Callable[[], None] | None):
        super().__init__(descriptor, "w", closefd=False)
        self._gone = gone

    def write(self, data: "ReadableBuffer", /) -> int:
        left = memoryview(data)
        size = len(left)
        try:
            while left:
                written = super().write(left)
                if written is None:  # the descriptor does not block, and its reader is slow
                    select.select([], [self], [])
                left = left[written or 0 :]
        except OSError as error:
            _silence(self.fileno())
            if error.errno in GONE and self._gone is not None:
                self._gone()
        return size


def _silence(descriptor: int) -> None:
    """From now on, what is written to `descriptor` goes nowhere; by whomever, C++ included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
