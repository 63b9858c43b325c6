"""The decoder's layers through torch.compile: fewer passes over memory, where the same layers run a thousand times."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

from iwopd.models.language_model import CACHES, LanguageModel
from iwopd.models.sharding import blocks


def compile_layers(lm: LanguageModel, compile: Callable[..., Any] = torch.compile) -> None:
    """Compile what is within each layer; what is around it (gradient checkpointing, gathered shards) stays as it is.

    Args:
        compile: torch.compile, or what stands in for it.
    """
    lm.compiled = True
    for block in blocks(lm):
        block.forward = _without_cache(block, compile)


def _without_cache(block: nn.Module, compile: Callable[..., Any]) -> Callable[..., Any]:
    """Sampling brings a cache, which is longer at every token: that runs as it was."""
    plain = block.forward
    compiled = compile(plain)

    @wraps(plain)
    def forward(*given: Any, **named: Any) -> Any:  # noqa: ANN401  of any architecture
        cached = any(named.get(name) is not None for name in CACHES)
        return (plain if cached else compiled)(*given, **named)

    return forward
