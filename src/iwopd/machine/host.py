"""The machine as this process may use it: cores and memory, within the limits of its container; glibc's heap."""

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MMAP_THRESHOLD = -3  # a parameter of mallopt(3)


def cores() -> int:
    """CPU cores this process may use at one time: of its affinity and its container's quota, hyper-threads once."""
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    found.append(psutil.cpu_count(logical=False) or found[0])
    found += [max(1, math.floor(quota)) for quota in _quotas()]
    return max(1, min(found))


def has_gpu() -> bool:
    """True where a driver of NVIDIA's or AMD's is loaded, as far as can be seen without torch."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def gpus() -> int | None:
    """NVIDIA GPUs that this process may use, as far as can be seen without torch; None where that is not known."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = [each.strip() for each in visible.split(",")]
        return len(list(takewhile(lambda each: each not in ("", "-1"), chosen)))
    return len([entry for entry in Path("/dev").glob("nvidia*") if entry.name[6:].isdecimal()]) or None


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    return psutil.Process().memory_info().rss


def total_bytes() -> int:
    """Memory of this machine, or of the container this process runs in."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_limits())])


def available_bytes() -> int:
    """Memory that processes can still take before this machine's, or this container's, is at its end."""
    left = (limit - used for limit, used in _memory_limits())
    return max(0, min([psutil.virtual_memory().available, *left]))


# ------------------------------------------------------------------------------------------------- limits of containers


def _quotas() -> Iterator[float]:
    """Cores, as each group this process is in allows; version 2 has both numbers in one file."""
    for folder in _cgroups("cpu"):
        found = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(found) == 2 and found[0].isdecimal():  # not "max", nor -1
            yield int(found[0]) / int(found[1])


def _memory_limits() -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of every group this process is in; files that can be dropped do not count as used."""
    names = (("memory.max", "memory.current", "inactive_file"),)
    names += (("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),)
    for folder in _cgroups("memory"):
        for limit, used, files in names:
            most, now = _words(folder / limit), _words(folder / used)
            if most and now and most[0].isdecimal() and int(most[0]) < 2**60:  # version 1 writes a huge number for none
                stat = _words(folder / "memory.stat")
                free = int(stat[stat.index(files) + 1]) if files in stat else 0
                yield int(most[0]), max(0, int(now[0]) - free)


def _cgroups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, from its own up to the root; of version 2 and of version 1."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = CGROUPS / controller if controllers else CGROUPS
            own = root / path.strip("/")
            # Inside a container the path may be that of the host, of which only the root is visible.
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root) and folder.is_dir())


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


# ------------------------------------------------------------------------------------------------------- glibc's heap


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc and its own malloc is in use."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    replaced = any(hasattr(library, name) for name in ("mallctl", "tc_version", "mi_version"))  # jemalloc and others
    return None if replaced or not hasattr(library, "gnu_get_libc_version") else library


def map_blocks_above(size: int) -> bool:
    """Have malloc take blocks of at least `size` bytes from the system, and give them back as soon as they are freed,
    instead of raising that size up to 32 MiB as it goes. True where it is done."""
    library = _glibc()
    return library is not None and bool(library.mallopt(MMAP_THRESHOLD, size))


def release_freed_memory() -> None:
    """Give back to the system what malloc keeps of freed blocks; nothing where it is not glibc's."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
