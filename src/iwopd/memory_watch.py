"""Host memory of a run: the most each stage needed, and a warning before the machine's memory ends."""

import logging
import threading
from typing import Self

from iwopd import host

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
        self._needs: dict[str, int] = {}  # of each stage, its peak when nothing was kept from before
        self._measuring: str | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def lap(self, stage: str) -> float:
        """The most resident memory since the last lap, MiB, which were of `stage`.

        Where that is more than the stage needs, freed blocks have piled up in malloc, and are given back to the system.
        Not at every lap: the next stage would have to take them again, for a fifth of its time on a small model. What a
        stage needs is found out by giving them back before it, too.
        """
        self._look()
        with self._lock:
            peak, self._peak = self._peak, 0
        if stage == self._measuring:
            self._needs[stage], self._measuring = max(peak, self._needs.get(stage, 0)), None
        elif self._measuring is None and peak > (1 + CREEP) * self._needs.get(stage, 0):
            self._measuring = stage
        if self._measuring is not None:
            host.release_freed_memory()
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
