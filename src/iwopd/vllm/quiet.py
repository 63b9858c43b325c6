"""What vLLM would leave in the process it runs in: lines of its log, prints, random states, threads, environment."""

import contextlib
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch


class LogFile:
    """While open, vLLM's log lines go to a file and nowhere else."""

    def __init__(self, file: Path):
        self.file = file
        self._logger = logging.getLogger("vllm")
        self._stack: list[tuple[logging.Handler, bool, int]] = []

    def __enter__(self) -> None:
        handler = logging.FileHandler(self.file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._stack.append((handler, self._logger.propagate, self._logger.level))
        self._logger.addHandler(handler)
        self._logger.propagate = False
        self._logger.setLevel(logging.INFO)

    def __exit__(self, *exception: object) -> None:
        handler, propagate, level = self._stack.pop()
        self._logger.removeHandler(handler)
        self._logger.propagate = propagate
        self._logger.setLevel(level)
        handler.close()


@contextlib.contextmanager
def standard_error_to(file: Path) -> Iterator[None]:
    """What libraries print while an engine starts, C++ and child processes included, goes to its log."""
    sys.stderr.flush()
    kept = os.dup(2)
    with file.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 2)
        try:
            with contextlib.redirect_stderr(stream):  # in a notebook, say, sys.stderr is not the process's own
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def as_found() -> Iterator[None]:
    """Starting vLLM makes `torch.set_num_threads` a no-op and sets environment variables that child processes would
    inherit; all is put back, and the state of the random generators too."""
    set_threads, threads, environment = torch.set_num_threads, torch.get_num_threads(), dict(os.environ)
    try:
        with random_state(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        for name in os.environ.keys() - environment.keys():
            if not name.startswith("VLLM_"):
                del os.environ[name]
        os.environ.update(environment)


@contextlib.contextmanager
def random_state() -> Iterator[None]:
    """vLLM seeds and draws from the process's own generators; they are left as they were."""
    python, array = random.getstate(), numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
