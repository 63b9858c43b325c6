"""The stages of a step as a person sees them, and what each costs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from iwopd.machine.memory_watch import MemoryWatch

if TYPE_CHECKING:
    from iwopd.rollout.base import Progress
    from iwopd.runs.console import Display


class Stages:
    """Shows the progress of each stage, and measures it.

    Attributes:
        step: said with a stage's name; counted from 1.

    Args:
        ended: called after each stage; may raise.
    """

    def __init__(self, display: "Display", memory: MemoryWatch, ended: Callable[[], None] = lambda: None):
        self.step = 1
        self._ended = ended
        self._display = display
        self._memory = memory
        self._measured: dict[str, float] = {}

    def begin(self) -> None:
        """A step or an evaluation begins: what was measured before is forgotten."""
        self._measured = {}
        self._memory.begin()

    @contextmanager
    def __call__(self, name: str, title: str | None = None) -> Iterator["Progress"]:
        """The stage `name`; yields what is to be called with its progress.

        Args:
            title: shown for it, instead of the step and the name.
        """
        began = time.perf_counter()
        with self._display.stage(title or f"step {self.step}: {name}") as progress:
            yield progress
        seconds, memory = f"time/{name}_s", f"memory/{name}_mib"
        self._measured[seconds] = self._measured.get(seconds, 0.0) + time.perf_counter() - began
        self._measured[memory] = max(self._measured.get(memory, 0.0), self._memory.lap(name))
        self._ended()

    @property
    def measured(self) -> dict[str, float]:
        """Since `begin`, of each stage that has ended: seconds, and the most host memory it took, MiB."""
        return self._measured
