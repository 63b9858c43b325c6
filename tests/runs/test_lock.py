"""One writer per folder: on one machine, and on several whose file system has no locks."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iwopd.errors import RunFolderError
from iwopd.runs import lock
from iwopd.runs.lock import FolderLock
from iwopd.runs.tracking import Tracker

pytestmark = pytest.mark.process


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, and a quick heart."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    monkeypatch.setattr(lock, "SILENT_S", 0.4)


def elsewhere(file: Path, monkeypatch: pytest.MonkeyPatch) -> FolderLock:
    """A lock of another machine's."""
    with monkeypatch.context() as patched:
        patched.setattr(lock, "machine", lambda: "another")
        patched.setattr(lock.platform, "node", lambda: "node17")
        other = FolderLock(file)
        other.acquire()
    return other


def test_the_systems_lock_keeps_others_out(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path / ".lock"), FolderLock(tmp_path / ".lock")
    first.acquire()
    with pytest.raises(RunFolderError, match=rf"another process \({os.getpid()} on .*\) is writing to it"):
        second.acquire()
    assert (first.held, second.held) == (True, False)
    first.release()
    second.acquire()
    second.release()


@pytest.mark.usefixtures("no_locks")
def test_a_living_writer_on_another_machine_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, here = elsewhere(tmp_path / ".lock", monkeypatch), FolderLock(tmp_path / ".lock")
    with pytest.raises(RunFolderError, match=rf"another process \({os.getpid()} on node17\) is writing to it"):
        here.acquire()
    other.release()
    here.acquire()
    here.release()


@pytest.mark.usefixtures("no_locks")
def test_one_that_has_gone_is_not_waited_for_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, here = elsewhere(tmp_path / ".lock", monkeypatch), FolderLock(tmp_path / ".lock")
    record = (tmp_path / ".lock").read_bytes()
    other.release()
    (tmp_path / ".lock").write_bytes(record)  # as kill -9 leaves it
    here.acquire()
    assert json.loads((tmp_path / ".lock").read_text())["machine"] == lock.machine()
    here.release()
    assert (tmp_path / ".lock").read_bytes() == b""


@pytest.mark.usefixtures("no_locks")
def test_one_that_is_taken_over_stops_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = FolderLock(tmp_path / ".lock")
    here.acquire()
    tracker = Tracker(tmp_path, check=here.check)
    tracker.log(1, {"a": 1})
    with monkeypatch.context() as patched:
        patched.setattr(lock, "_lives", lambda found, file: False)  # as seen while this process was suspended
        other = elsewhere(tmp_path / ".lock", monkeypatch)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"\(\d+ on node17\) writes to it now; this one stops"):
        tracker.log(2, {"a": 2})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    here.release()
    assert json.loads((tmp_path / ".lock").read_text())["machine"] == "another"
    other.release()


@pytest.mark.usefixtures("no_locks")
def test_a_process_of_this_machine_is_known_to_live_or_not(tmp_path: Path) -> None:
    program = "import sys, pathlib; from iwopd.runs import lock; it = lock.FolderLock(pathlib.Path(sys.argv[1])); "
    program += "it.acquire(); print('held', flush=True); sys.stdin.read()"
    file = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        here = FolderLock(file)
        with pytest.raises(RunFolderError, match=rf"another process \({process.pid} on "):
            here.acquire()
        process.kill()
    assert file.read_bytes()
    here.acquire()
    here.release()
