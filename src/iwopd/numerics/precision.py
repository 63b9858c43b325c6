"""Sums that need more than float32 where a device has it."""

from torch import Tensor


def widened(values: Tensor) -> Tensor:
    """`values` in float64; in float32 on Apple's GPUs, which have nothing wider."""
    return values.float() if values.device.type == "mps" else values.double()
