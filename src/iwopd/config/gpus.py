"""Graphics cards by name: what a plan for a machine that is not here needs to know of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        gib: memory as CUDA reports it, GiB.
        tflops: dense matrix products in bfloat16, 10¹² per second; the V100 has no bfloat16, its figure is float16's.
        bandwidth: of its memory, 10⁹ bytes per second.
        device: piece of the name by which CUDA calls it.
        float32: products in float32, 10¹² per second, where they were measured; None where all are planned as tflops.
    """

    gib: float
    tflops: float
    bandwidth: float
    device: str
    float32: float | None = None


# Figures of NVIDIA's data sheets: SXM parts where there are several, without sparsity, accumulating in float32.
CARDS: Mapping[str, Card] = MappingProxyType(
    {
        "b200": Card(178.4, 2250, 8000, "B200"),
        "h200": Card(139.8, 989, 4800, "H200"),
        "h100": Card(79.1, 989, 3350, "H100"),
        "a100-80": Card(79.1, 312, 2039, "A100"),
        "a100-40": Card(39.4, 312, 1555, "A100"),
        "l40s": Card(44.4, 362, 864, "L40S"),
        "l4": Card(22.0, 121, 300, "L4"),
        "rtx4090": Card(23.5, 165, 1008, "RTX 4090"),
        "rtx3090": Card(23.6, 71, 936, "RTX 3090"),
        "v100": Card(31.7, 125, 900, "V100"),
    }
)


def card_of(device_name: str, gib: float) -> Card | None:
    """The card that CUDA calls `device_name`, of the memory nearest to `gib`; None for one not listed."""
    words = device_name.replace("-", " ").split()
    named = [card for card in CARDS.values() if set(card.device.split()) <= set(words)]
    return min(named, key=lambda card: abs(card.gib - gib), default=None)
