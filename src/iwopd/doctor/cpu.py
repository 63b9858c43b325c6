"""How fast this machine's CPU is: measured in a fraction of a second, for there is no data sheet to ask."""

import time
from collections.abc import Callable
from functools import cache

import torch

from iwopd.config.gpus import Card

ROWS, WIDTH = 64, 512  # a product that is over before other programs get their turn
BYTES = 2**27  # read to measure the memory: more than caches hold
TRIES = 50  # of which the fastest counts: other programs only ever slow one down


@cache
def measured() -> Card:
    """Products in float32 and bfloat16, and the memory's bandwidth.

    Products of one thread count once for each that the process has: where other programs run, several would wait for
    the slowest.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tflops = {dtype: threads * _product(dtype) for dtype in (torch.float32, torch.bfloat16)}
        there = torch.ones(BYTES // 4)
        bandwidth = BYTES / _fastest(lambda: there.sum()) / 1e9
    finally:
        torch.set_num_threads(threads)
    return Card(0.0, tflops[torch.bfloat16], bandwidth, "CPU", tflops[torch.float32])


def _product(dtype: torch.dtype) -> float:
    """10¹² operations per second."""
    left, right = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    return 2 * ROWS * WIDTH * WIDTH / _fastest(lambda: torch.nn.functional.linear(left, right)) / 1e12


def _fastest(call: Callable[[], object]) -> float:
    """Seconds."""

    def once() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    once()  # oneDNN prepares the first
    return min(once() for _ in range(TRIES))
