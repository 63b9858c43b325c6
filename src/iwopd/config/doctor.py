"""What `iwopd doctor` assumes and where it writes."""

from dataclasses import dataclass

from iwopd.config.gpus import CARDS
from iwopd.setting import setting


@dataclass(kw_only=True, slots=True)
class DoctorConfig:
    """For which machine, and with which assumptions."""

    card: str | None = setting(
        None, "plan for this card instead of this machine, e.g. before renting one", choices=tuple(CARDS)
    )
    gpus: int = setting(1, "how many of that card a machine has; with parallel=fsdp each has a process", low=1)
    machines: int = setting(1, "how many such machines, with parallel=fsdp", low=1)
    utilisation: float = setting(0.35, "share of a card's peak that matrix products reach", above=0, high=1)
    bandwidth: float = setting(0.6, "share of a card's memory bandwidth that decoding reaches", above=0, high=1)
    response_tokens: int | None = setting(
        None, "mean response length for FLOPs and hours, tokens; null for the longest allowed", low=1
    )
    live: bool = setting(True, "load models that are here, and compare engine, trainer and teacher")
    live_gib: float = setting(4.0, "no models are loaded whose weights take more, GiB", above=0)
    json: str | None = setting(None, "file for the findings and the estimate as JSON; null for none", path=True)
