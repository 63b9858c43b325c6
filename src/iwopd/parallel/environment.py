"""Which of the processes that torchrun, srun or `launcher` started this one is, by its environment."""

import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from iwopd.errors import ConfigError

OUTPUT_KEPT = "IWOPD_OUTPUT_KEPT"  # set where a launcher keeps what ranks beside the leader print
# What torch.distributed reads.
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Slurm gives a job no port; jobs that share a machine must not meet at one. Below those that systems give away.
FIRST_PORT, PORTS = 12000, 20000


@dataclass(frozen=True)
class Place:
    """One of several processes.

    Attributes:
        rank: from 0; it is the leader.
        size: processes in all.
        local_rank: the same among those of this machine; its GPU.
        local_size: processes of this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


def place() -> Place | None:
    """What torchrun's variables say, else what Slurm's say of a step; None for a process that was started alone.

    Raises:
        ConfigError: they contradict each other, or one is missing.
    """
    given = os.environ
    if "RANK" in given and "WORLD_SIZE" in given:
        found = _of_torchrun(given)
        if found.size > 1:
            for name in ("MASTER_ADDR", "MASTER_PORT"):
                if name not in given:
                    raise ConfigError(f"{name}: not set beside RANK and WORLD_SIZE; start with torchrun, or set it")
        return found
    # A batch script has SLURM_PROCID too, and is no task of a step.
    if "SLURM_PROCID" in given and ("SLURM_STEP_ID" in given or given.get("ENVIRONMENT") != "BATCH"):
        return _of_slurm(given)
    return None


def adopt() -> Place | None:
    """`place`; of a step of Slurm, torchrun's variables are set for this process, so that torch finds the others.

    Raises:
        ConfigError: see `place`.
    """
    found = place()
    if found is not None and found.size > 1 and "RANK" not in os.environ:
        own = (found.rank, found.size, found.local_rank, found.local_size, _first_host(os.environ), _port(os.environ))
        for name, value in zip(NAMES, own, strict=True):
            os.environ.setdefault(name, str(value))
    return found


def speaks() -> bool:
    """False for a process whose leader says what all of them meet; what goes to a file of its own may be said twice."""
    return OUTPUT_KEPT in os.environ or leads()


def leads() -> bool:
    """True for rank 0, and for a process alone."""
    with suppress(ConfigError):
        found = place()
        return found is None or found.rank == 0
    return os.environ.get("RANK", "0") == "0"


def _of_torchrun(given: Mapping[str, str]) -> Place:
    rank, size = _number(given, "RANK"), _number(given, "WORLD_SIZE")
    local_rank = _number(given, "LOCAL_RANK", rank)
    return _checked(Place(rank, size, local_rank, _number(given, "LOCAL_WORLD_SIZE", size)), "RANK", "WORLD_SIZE")


def _of_slurm(given: Mapping[str, str]) -> Place:
    size = _number(given, "SLURM_STEP_NUM_TASKS", _number(given, "SLURM_NTASKS", 1))
    rank = _number(given, "SLURM_PROCID")
    return _checked(
        Place(rank, size, _number(given, "SLURM_LOCALID", rank), _tasks_here(given, size)),
        "SLURM_PROCID",
        "SLURM_NTASKS",
    )


def _checked(found: Place, rank: str, size: str) -> Place:
    if not (found.rank < found.size and found.local_rank < found.local_size <= found.size):
        raise ConfigError(
            f"{rank}={found.rank}, {size}={found.size}: process {found.local_rank} of {found.local_size} on this "
            "machine cannot be; start with torchrun or srun, or unset them for a process alone"
        )
    return found


def _number(given: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = given.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text}: not a number; start with torchrun or srun, or unset it for a process alone")
    return int(text)


def _tasks_here(given: Mapping[str, str], size: int) -> int:
    """Tasks of the step on this machine: this one's of, e.g., 8(x3),4."""
    text = given.get("SLURM_STEP_TASKS_PER_NODE") or given.get("SLURM_TASKS_PER_NODE") or str(size)
    counts = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]
    node = _number(given, "SLURM_NODEID", 0)
    return counts[node] if node < len(counts) else size


def _first_host(given: Mapping[str, str]) -> str:
    """The machine of rank 0. Slurm's list is its own notation, e.g. gpu[01-04,7], which scontrol reads."""
    hosts = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST") or given.get("SLURM_NODELIST") or ""
    if not hosts:
        return "127.0.0.1"
    with suppress(OSError, subprocess.SubprocessError, IndexError):
        command = ["scontrol", "show", "hostnames", hosts]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    stem, number, rest = re.fullmatch(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\]([^,]*))?.*", hosts).groups()  # pyright: ignore
    return f"{stem}{number or ''}{rest or ''}"


def _port(given: Mapping[str, str]) -> int:
    """The same for all tasks of a step, and most likely another for another step."""
    job, step = (given.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return FIRST_PORT + (int(re.sub(r"\D", "", job) or 0) + int(re.sub(r"\D", "", step) or 0)) % PORTS
