"""How long the rest of a run will take, from what its steps, evaluations and checkpoints took so far."""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean
from time import perf_counter
from typing import Literal

Kind = Literal["steps", "evaluations", "checkpoints"]
LAST = 20  # of each kind whose mean is taken: responses grow, and others come to work on the machine


class Pace:
    """Seconds of each kind of work of this session, as its process saw them."""

    def __init__(self) -> None:
        self._seconds: dict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=LAST))

    @contextmanager
    def __call__(self, kind: Kind) -> Iterator[None]:
        """A block of that kind; one that raises is not counted."""
        began = perf_counter()
        yield
        self.took(kind, perf_counter() - began)

    def took(self, kind: Kind, seconds: float) -> None:
        """One more of that kind."""
        self._seconds[kind].append(seconds)

    def left(self, remaining: Mapping[Kind, float]) -> float | None:
        """Seconds for so many of each kind; None before the first step. What was not seen yet takes no time."""
        if not self._seconds["steps"]:
            return None
        return sum(count * fmean(self._seconds[kind] or [0.0]) for kind, count in remaining.items())
