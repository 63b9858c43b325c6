"""The machine a run is planned for: this one, or cards that are not here."""

import os
from dataclasses import dataclass
from pathlib import Path

from iwopd.cards import CARDS, Card, card_of
from iwopd.config import DoctorConfig
from iwopd.doctor.memory import GIB


@dataclass(frozen=True)
class Machine:
    """Attributes:
    kind: "cuda" or "cpu".
    name: for the reader.
    gpus: how many.
    memory: bytes of each GPU, or of the host where there is none.
    free: of them, not taken by others.
    host: bytes of the host's memory; None for a machine that is not here.
    card: its figures; None for one not listed.
    """

    kind: str
    name: str
    gpus: int
    memory: float
    free: float
    host: float | None
    card: Card | None

    @property
    def where(self) -> str:
        """The place where the student is trained."""
        return "GPU 0" if self.kind == "cuda" else "host memory"


def machine_for(config: DoctorConfig, device: str) -> Machine:
    """Of `doctor.card`, or of this machine with `run.device`."""
    if config.card is not None:
        card = CARDS[config.card]
        return Machine("cuda", config.card, config.gpus, card.gib * GIB, card.gib * GIB, None, card)
    import torch

    host = host_bytes()
    index = 0 if device in ("auto", "cuda") else int(device.removeprefix("cuda:")) if device != "cpu" else None
    if index is None or not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return Machine("cpu", "this machine's CPU", 0, host, _available(host), host, None)
    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return Machine("cuda", name, torch.cuda.device_count(), total, free, host, card_of(name, total / GIB))


def host_bytes() -> float:
    """Memory of this machine, or of the container it runs in."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(file).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found)


def _available(otherwise: float) -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return min(otherwise, next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        return otherwise


def resident_bytes() -> float:
    """What this process holds now: Python and the libraries it has imported. 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE")
