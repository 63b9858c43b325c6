"""Leaves out what is least likely to the teacher (the filter of FiRe-OPD, arXiv 2606.02684)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class Fire(Weighting):
    """The filter alone.

    † The preset is as inferred from a description. The authors' code leaves out whole responses, those of the lowest
    mean log-prob (unit responses), and then weighs tokens by the entropies of both models, which is not done here.
    """

    scheme: str = setting("fire", NAME)
    share: float = setting(0.2, "share of the batch that is left out", low=0, high=0.999)
    unit: str = setting(
        "tokens",
        "what is left out: the least likely tokens, or the responses whose tokens are least likely on average",
        choices=("tokens", "responses"),
    )

    needs_batch = True  # the share is of the rollout batch

    def weights(self, given: "WeightInput") -> "Tensor":
        """0 on the ⌊share · n⌋ units of the lowest log π_T, the first of equal ones; 1 elsewhere."""
        mask, logprobs = given.mask, given.teacher_logprobs
        weights = given.advantages.new_ones(mask.shape)
        if self.unit == "tokens":
            places = mask.nonzero()
            order = logprobs[mask].argsort(stable=True)[: _size(len(places), self.share)]
            rows, columns = places[order].T
            weights[rows, columns] = 0
        else:
            means = logprobs.masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)
            weights[means.argsort(stable=True)[: _size(len(means), self.share)]] = 0
        return weights


def _size(count: int, share: float) -> int:
    return int(share * count + 1e-9)  # 0.29 · 100 is 28.999999999999996 in floating point
