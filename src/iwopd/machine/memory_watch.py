"""Host memory of a run: the most each stage needed, and a warning before the machine's memory ends."""

import logging
import threading
from typing import Self

from iwopd.machine import host

log = logging.getLogger(__name__)

EVERY, LOOKS = 0.1, 10  # seconds between looks at this process; of which so many go by between looks at the machine
CREEP = 0.02  # of what a stage needs: with more than that, freed blocks are given back
LOW = 0.08  # of the machine's memory: when less is left, a warning is given
MIB, GIB = 2**20, 2**30


class MemoryWatch:
    """Looks at the process's resident memory while open; a context manager."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._peak = 0
        self._warned = False
        self._needs: dict[str, int] = {}  # of each stage: its peak where nothing was kept from before
        self._fresh = False  # nothing was kept when this step began
        self._piled_up = False

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def begin(self) -> None:
        """A step begins. If a stage of the one before held more than it needs, freed blocks have piled up in malloc:
        they are given back to the system, and what the stages hold then is what they need. Not at every step: what is
        given back must be taken again, for a tenth of an update's time.
        """
        self._fresh, self._piled_up = self._piled_up, False
        if self._fresh:
            host.release_freed_memory()

    def lap(self, stage: str) -> float:
        """The most resident memory since the last lap, MiB, which were of `stage`."""
        self._look()
        with self._lock:
            peak, self._peak = self._peak, 0
        if self._fresh:
            self._needs[stage] = max(peak, self._needs.get(stage, 0))
        elif peak > (1 + CREEP) * self._needs.get(stage, 0):
            self._piled_up = True
        return round(peak / MIB, 1)

    def _look(self) -> int:
        resident = host.resident_bytes()
        with self._lock:
            self._peak = max(self._peak, resident)
        return resident

    def _watch(self) -> None:
        total, looks = host.total_bytes(), 0
        while not self._stop.wait(EVERY):
            resident, looks = self._look(), looks + 1
            if looks % LOOKS == 0 and not self._warned:
                self._warn(host.available_bytes(), total, resident)

    def _warn(self, left: int, total: int, resident: int) -> None:
        """Once, when little is left."""
        if left >= LOW * total:
            return
        self._warned = True
        log.warning(
            "%.1f of %.1f GiB of this machine's memory are left, and this process holds %.1f: when none is, the system "
            "ends the run without a word; use smaller optim.micro_batch_tokens, rollout.batch_size or "
            "scoring.batch_tokens, student.gradient_checkpointing=true, or LoRA",
            left / GIB,
            total / GIB,
            resident / GIB,
        )
