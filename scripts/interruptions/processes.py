"""Sessions of a run as real processes, and what they leave."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil

MARK = "IWOPD_CAMPAIGN"  # environment: every process of a campaign inherits it
PRELOADED = ["torch", "transformers", "transformers.models.qwen3.modeling_qwen3", "iwopd.commands.train"]
SHARED_MEMORY = Path("/dev/shm")


class Session:
    """`python -m iwopd ARGUMENTS` in a session of its own, its output in two files.

    Args:
        preload: fork it from a process that has imported torch and transformers already, which spares seconds.
    """

    def __init__(self, arguments: list[str], folder: Path, mark: str, preload: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.errors = folder / "out", folder / "errors"
        for file in (self.out, self.errors):
            file.write_bytes(b"")
        environment = {MARK: mark, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary(folder))}
        self.began = time.monotonic()
        self._forked: Any = None
        if preload:
            self._forked = _forkserver().Process(
                target=_serve, args=(arguments, environment, str(self.out), str(self.errors))
            )
            self._forked.start()
            self.pid: int = self._forked.pid
            return
        with self.out.open("wb") as out, self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "iwopd", *arguments],
                stdout=out,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def status(self) -> int | None:
        """As subprocess gives it: negative for a signal; None while it runs."""
        return self._forked.exitcode if self._forked is not None else self._process.poll()

    def wait(self, seconds: float) -> bool:
        """True once it has ended."""
        limit = time.monotonic() + seconds
        while self.status() is None:
            if time.monotonic() > limit:
                return False
            time.sleep(0.02)
        return True

    def tree(self) -> list[int]:
        """Its process and those that descend from it."""
        try:
            return [self.pid, *(each.pid for each in psutil.Process(self.pid).children(recursive=True))]
        except psutil.NoSuchProcess:
            return [self.pid]

    def lines(self) -> list[str]:
        """Standard output so far."""
        return self.out.read_text(errors="replace").splitlines()

    def step_lines(self) -> int:
        """Lines about steps and evaluations so far."""
        return sum(line.startswith(("step ", "after step ")) or ": accuracy" in line for line in self.lines())

    def steps(self) -> list[int]:
        """The steps that it says it has taken."""
        return [int(found[1]) for line in self.lines() if (found := re.match(r"step (\d+)/", line))]

    def said(self) -> str:
        """The last line: of standard error, else of standard output."""
        for file in (self.errors, self.out):
            lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return lines[-1]
        return ""


def temporary(folder: Path) -> Path:
    """Where its temporary files go."""
    made = folder / "tmp"
    made.mkdir(exist_ok=True)
    return made


def _forkserver() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def warm_up() -> None:
    """Have torch imported where processes are forked from."""
    first = _forkserver().Process(target=time.monotonic)
    first.start()
    first.join()


def _serve(arguments: list[str], environment: dict[str, str], out: str, errors: str) -> None:
    """In the forked process: what `python -u -m iwopd` would do."""
    os.setsid()
    os.environ.update(environment)
    for descriptor, name in ((1, out), (2, errors)):
        opened = os.open(name, os.O_WRONLY | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["iwopd", *arguments]
    from iwopd.cli import main

    main()


def send(number: signal.Signals, processes: list[int]) -> None:
    """A signal to each that is still there."""
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def left_running(mark: str, sessions: Collection[int], seconds: float = 6.0) -> list[str]:
    """Processes of a run that are still there after a while; they are killed.

    Args:
        mark: the run's, in the environment of what was executed.
        sessions: of the run: what was only forked has no environment of its own to be seen.
    """
    limit = time.monotonic() + seconds
    while found := [each for each in psutil.process_iter() if _belongs(each, mark, sessions)]:
        if time.monotonic() >= limit:
            names = [_name(each) for each in found]
            for each in found:
                each.kill()
            return names
        time.sleep(0.2)
    return []


def _belongs(process: psutil.Process, mark: str, sessions: Collection[int]) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return os.getsid(process.pid) in sessions or process.environ().get(MARK) == mark
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return False


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:80]
    except psutil.NoSuchProcess:
        return "?"


def shared_memory() -> set[str]:
    """What lies in this machine's shared memory and no process holds."""
    names = {each.name for each in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set[str]()
    return names - _held(names) if names else names


def _held(names: set[str]) -> set[str]:
    found = set[str]()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "maps").read_text() + "\n".join(os.readlink(each) for each in (process / "fd").iterdir())
        except OSError:  # gone, or another user's
            continue
        found |= {name for name in names if f"{SHARED_MEMORY}/{name}" in text}
    return found
