"""Weights in the layout that oneDNN multiplies fastest, for sampling on a CPU in bfloat16.

A token step multiplies every weight with a few rows: most of its time goes to reading weights, which PyTorch's own
product first brings into another layout, at every token anew. Packed once, they are read once. The products are the
same to the bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from iwopd._compat import onednn_linear, onednn_pack
from iwopd.models.language_model import LanguageModel


@contextmanager
def packed(lm: LanguageModel) -> Iterator[None]:
    """While the block lasts, linear layers that compute in bfloat16 on a CPU have packed copies of their weights, which
    must not change meanwhile. Elsewhere nothing happens."""
    linear, pack = onednn_linear(), onednn_pack()
    if lm.device.type != "cpu" or linear is None or pack is None:
        yield
        return
    layers = [
        each
        for each in lm.model.modules()
        if type(each) is nn.Linear and "forward" not in vars(each) and _in_bfloat16(lm, each)
    ]
    try:
        with torch.no_grad():
            for layer in layers:
                vars(layer)["forward"] = partial(_product, linear, pack(layer.weight.bfloat16()), layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _in_bfloat16(lm: LanguageModel, layer: nn.Linear) -> bool:
    return lm.autocast_enabled or layer.weight.dtype == torch.bfloat16


def _product(linear: Callable[..., Tensor], weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    return linear(states.bfloat16(), weight, None if bias is None else bias.bfloat16(), "none", [], "")
