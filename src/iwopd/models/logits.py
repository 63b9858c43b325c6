"""How an architecture makes logits of what its head's matrix gives: scaled, capped, or as they are.

The settings have other names in every family, and one name means a factor here and a divisor there. So the candidates
are tried against the architecture's own forward pass, and the first that gives the same is taken.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
CAPS = ("final_logit_softcapping", "output_logit_soft_cap")


@dataclass(frozen=True)
class Logits:
    """scale · x, and then cap · tanh(x / cap) where there is a cap."""

    scale: float = 1.0
    cap: float | None = None

    @property
    def plain(self) -> bool:
        """True where nothing is changed."""
        return self.scale == 1.0 and self.cap is None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def candidates(config: PreTrainedConfig) -> list[Logits]:
    """What a config may mean, likeliest first: everything it names, then less of it; at last nothing.

    Values that are no numbers (MPT's `logit_scale` is null, or a word) stand for nothing.
    """
    factors = [value for name in FACTORS if (value := _number(config, name))]
    divisors = [value for name in DIVISORS if (value := _number(config, name))]
    named = math.prod(factors) / math.prod(divisors)
    scales = dict.fromkeys([named, *factors, *(1 / value for value in divisors), *divisors, 1.0])
    caps = dict.fromkeys([*(value for name in CAPS if (value := _number(config, name))), None])
    return [Logits(scale, cap) for scale, cap in itertools.product(scales, caps)]


def _number(config: PreTrainedConfig, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
