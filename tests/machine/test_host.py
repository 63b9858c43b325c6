"""The machine as a process sees it, limits of containers among them; and the watch over its memory."""

import logging
import os
from pathlib import Path

import psutil
import pytest

from iwopd.machine import host
from iwopd.machine.memory_watch import MemoryWatch

GIB = 2**30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes files of control groups, and puts this process into group /a/b of version 2 (or of version 1)."""
    lines = host._lines
    member = ["0::/a/b"]

    def read(file: Path) -> list[str]:
        return member if file == Path("/proc/self/cgroup") else lines(file)

    def write(files: dict[str, str], version: int = 2) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        if version == 1:
            member[:] = ["4:memory:/a/b", "3:cpu,cpuacct:/a/b"]

    monkeypatch.setattr(host, "CGROUPS", tmp_path)
    monkeypatch.setattr(host, "_lines", read)
    return write


def test_without_limits_it_is_the_machines(groups) -> None:
    groups({"a/b/memory.max": "max\n", "a/b/memory.current": "5\n", "a/b/cpu.max": "max 100000\n"})
    assert host.total_bytes() == psutil.virtual_memory().total
    assert 1 <= host.cores() <= len(os.sched_getaffinity(0))


def test_the_lowest_limit_on_the_way_up_counts(groups) -> None:
    groups(
        {
            "memory.max": f"{GIB}\n",
            "memory.current": f"{GIB // 2}\n",
            "memory.stat": f"anon 1\ninactive_file {GIB // 4}\n",
            "a/b/memory.max": f"{2 * GIB}\n",
            "a/b/memory.current": "0\n",
            "a/cpu.max": "150000 100000\n",
        }
    )
    assert host.total_bytes() == GIB
    assert host.available_bytes() == 3 * GIB // 4, "files that can be dropped are not in use"
    assert host.cores() == 1


def test_limits_of_version_1(groups) -> None:
    groups(
        {
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": "1",
            "memory/a/b/memory.limit_in_bytes": f"{GIB}",
            "memory/a/b/memory.usage_in_bytes": f"{GIB}",
            "cpu,cpuacct/cpu.cfs_quota_us": "100000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        version=1,
    )
    assert (host.total_bytes(), host.available_bytes()) == (GIB, 0)


def test_a_stage_tells_the_most_memory_it_held() -> None:
    with MemoryWatch() as memory:
        memory.begin()
        before = memory.lap("before")
        held = bytearray(200 * 2**20)
        memory._look()
        del held
        filled, after = memory.lap("filled"), memory.lap("after")
    assert 190 < filled - before < 250
    assert abs(after - before) < 50


def test_freed_blocks_are_given_back_when_a_stage_holds_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    resident, given_back = [0], list[bool]()
    monkeypatch.setattr(host, "resident_bytes", lambda: resident[0])
    monkeypatch.setattr(host, "release_freed_memory", lambda: given_back.append(True))
    memory = MemoryWatch()

    def step(rollout: int, update: int) -> bool:
        """True where freed blocks were given back as the step began."""
        given_back.clear()
        memory.begin()
        for stage, size in (("rollout", rollout), ("update", update)):
            resident[0] = size
            memory.lap(stage)
        return bool(given_back)

    assert [step(1000, 2000) for _ in range(4)] == [False, True, False, False], "once, to know what they need"
    assert not step(1000, 2030), "makes no difference"
    assert not step(1100, 2000)
    assert step(1000, 2000), "the step before held more than it needed"
    assert not step(1000, 2100)
    assert step(1000, 2100)
    assert not step(1000, 2100), "so much was needed"


@pytest.mark.skipif(host._glibc() is None, reason="glibc's malloc keeps freed blocks")
def test_what_malloc_keeps_can_be_given_back() -> None:
    held = [bytearray(60_000) for _ in range(4_000)]
    top = bytearray(60_000)  # above them: without it malloc gives them back itself
    full = host.resident_bytes()
    del held
    assert host.resident_bytes() > full - 100 * 2**20
    host.release_freed_memory()
    assert host.resident_bytes() < full - 200 * 2**20
    del top


def test_a_warning_comes_once_before_the_memory_ends(caplog: pytest.LogCaptureFixture) -> None:
    memory = MemoryWatch()
    with caplog.at_level(logging.WARNING, "iwopd"):
        memory._warn(10 * GIB, 100 * GIB, GIB)
        assert not caplog.records
        memory._warn(7 * GIB, 100 * GIB, 80 * GIB)
    assert "7.0 of 100.0 GiB of this machine's memory are left, and this process holds 80.0" in caplog.text
    assert memory._warned
