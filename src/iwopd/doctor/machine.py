"""The machine a run is planned for: this one, or cards that are not here."""

from dataclasses import dataclass

import torch

from iwopd.config import DoctorConfig
from iwopd.config.gpus import CARDS, Card, card_of
from iwopd.doctor.memory import GIB
from iwopd.machine import host


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
    total = float(host.total_bytes())
    if device == "mps":  # its memory is the host's
        return Machine("cpu", "this machine's GPU", 0, total, float(host.available_bytes()), total, None)
    index = 0 if device in ("auto", "cuda") else int(device.removeprefix("cuda:")) if device != "cpu" else None
    if index is None or not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return Machine("cpu", "this machine's CPU", 0, total, float(host.available_bytes()), total, None)
    free, memory = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return Machine("cuda", name, torch.cuda.device_count(), memory, free, total, card_of(name, memory / GIB))
