"""One writer per run folder: on one machine, and on several that share a file system, also one without locks.

The system's lock excludes others where the file system has locks. Besides, the lock's file says which process on which
machine writes, and a number in it that goes up every BEAT_S seconds. Of a writer on this machine it is known whether it
lives; one elsewhere is watched: what does not move for SILENT_S seconds has gone. Clocks are not compared.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from iwopd.errors import RunFolderError
from iwopd.runs.files import read_object

log = logging.getLogger(__name__)

BEAT_S = 5.0
SILENT_S = 20.0
CLOCK_S = 60.0  # a process of the same number that started at another time is another one
WIDTH = 512  # bytes of the record: of one size, so that a reader never sees a part of it
HELD = (errno.EWOULDBLOCK, errno.EACCES)


class FolderLock:
    """The lock of one run folder.

    Args:
        file: the lock's; made on acquiring, and left there empty.
    """

    def __init__(self, file: Path):
        self.file = file
        self._descriptor: int | None = None
        self._record: dict[str, Any] = {}
        self._taken_by: dict[str, Any] | None = None
        self._released = threading.Event()
        self._heart: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """True while this object keeps others from writing there."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Keep others out.

        Raises:
            RunFolderError: another process writes there; says which.
            OSError: the file cannot be made.
        """
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, self.file)
            found = read_object(self.file)
            if found is not None and _lives(found, self.file):
                raise _in_use(self.file, found)
        except BaseException:
            os.close(descriptor)
            raise
        process = psutil.Process()
        self._descriptor, self._taken_by, self._released = descriptor, None, threading.Event()
        self._record = {
            "id": uuid.uuid4().hex,
            "host": platform.node(),
            "machine": machine(),
            "process": process.pid,
            "started": process.create_time(),
            "beat": 0,
        }
        self._write()
        self._heart = threading.Thread(target=self._beat, name="run folder lock", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """See that the folder is still ours.

        Raises:
            RunFolderError: a process elsewhere has taken it over, as after this one was suspended for long.
        """
        if self._descriptor is not None and self._is_taken():
            assert self._taken_by is not None
            raise RunFolderError(
                f"run.dir={self.file.parent}: {_said(self._taken_by)} writes to it now; this one stops and leaves "
                "the folder as it is"
            )

    def release(self) -> None:
        """Let others in."""
        if self._descriptor is None or self._heart is None:
            return
        self._released.set()
        self._heart.join()  # else it could write into what the descriptor's number stands for next
        if not self._is_taken():
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            if self._is_taken():
                return
            self._record["beat"] += 1
            self._write()

    def _is_taken(self) -> bool:
        found = read_object(self.file)
        if found is not None and found.get("id") != self._record["id"]:
            self._taken_by = found
        return self._taken_by is not None

    def _write(self) -> None:
        assert self._descriptor is not None
        with contextlib.suppress(OSError):  # a full disk, a server that is away: the next one may succeed
            os.pwrite(self._descriptor, json.dumps(self._record).ljust(WIDTH).encode(), 0)
            os.fsync(self._descriptor)


def machine() -> str:
    """Tells machines, and containers with processes of their own, from others."""
    found = [platform.node()]
    with contextlib.suppress(OSError):
        found += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(found)


def _lock(descriptor: int, file: Path) -> None:
    """The system's lock, where there are any."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise _in_use(file, read_object(file) or {}) from None
        log.warning(
            "%s: its file system has no locks (%s); a process on another machine is noticed by its heartbeat alone",
            file.parent,
            error.strerror,
        )


def _lives(found: dict[str, Any], file: Path) -> bool:
    """True for a writer that is at work, as far as can be known."""
    if found.get("machine") == machine():
        try:
            process = psutil.Process(found["process"])
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - found["started"]) < CLOCK_S
        except (psutil.Error, KeyError, TypeError, ValueError):
            return False
    log.info(
        "%s: %s was here; waiting up to %g s to see whether it is still running", file.parent, _said(found), SILENT_S
    )
    for _ in range(round(SILENT_S / BEAT_S * 4)):
        time.sleep(BEAT_S / 4)
        if read_object(file) != found:
            return True
    return False


def _in_use(file: Path, found: dict[str, Any]) -> RunFolderError:
    return RunFolderError(f"run.dir={file.parent}: {_said(found)} is writing to it; wait, or stop it")


def _said(found: dict[str, Any]) -> str:
    where = f" ({found['process']} on {found['host']})" if {"process", "host"} <= found.keys() else ""
    return f"another process{where}"
