"""Dropout that is a pure function of each sequence's seed and of the place within it.

PyTorch's own draws masks in the order of the batch: another micro-batch size, another padding or another number of
processes would train with other masks. Here neither changes them, and a layer that is computed again in backward gets
the same.
"""

from collections.abc import Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

_WORD = 0xFFFFFFFF


def seeded_dropout(values: Tensor, p: float, keys: Tensor) -> Tensor:
    """`values` [batch, columns, width] with a share `p` of them 0 and the others divided by 1 − p.

    Args:
        keys: [batch], 32-bit whole numbers as int64: a row's mask follows from its key alone, column by column.
    """
    columns, width = values.shape[-2:]
    places = torch.arange(columns * width, device=values.device).view(columns, width)
    hashed = keys[:, None, None] ^ (places * 0x9E3779B9 & _WORD)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finalizer of MurmurHash3
        hashed = (hashed ^ (hashed >> shift)) * factor & _WORD
    kept = (hashed ^ (hashed >> 16)) >= int(p * 2**32)
    return torch.where(kept, values / (1 - p), torch.zeros_like(values))


class SeededDropout:
    """While open, the dropout layers it is given draw their masks from `seeds`.

    Args:
        layers: those of adapters.

    Attributes:
        seeds: one for each row of the batches to come.
    """

    def __init__(self, layers: Sequence[nn.Dropout]):
        self.layers = layers
        self.seeds: Sequence[int] = []

    def __enter__(self) -> Self:
        for number, layer in enumerate(self.layers):
            vars(layer)["forward"] = partial(self._forward, layer, number)
        return self

    def __exit__(self, *exception: object) -> None:
        for layer in self.layers:
            del vars(layer)["forward"]

    def _forward(self, layer: nn.Dropout, number: int, values: Tensor) -> Tensor:
        if not layer.training:
            return values
        keys = torch.tensor([(seed ^ number * 0x27D4EB2F) & _WORD for seed in self.seeds], device=values.device)
        rows = values.view(len(self.seeds), -1, values.shape[-1])  # routers see the batch as one sequence
        return seeded_dropout(rows, layer.p, keys).view_as(values)
