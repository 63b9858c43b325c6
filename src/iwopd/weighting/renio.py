"""One weight per response: more where the student is surer of it than the teacher (ReNIO, arXiv 2606.23104)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class Renio(Weighting):
    """The geometric mean of π_θ/π_T over the response's tokens.

    † The preset is as inferred from a description. The authors' code takes the mean over key tokens alone and divides
    by the batch's mean weight: threshold 0.8, clip 2.5, normalize true.
    """

    scheme: str = setting("renio", NAME)
    threshold: float | None = setting(
        None, "log π_θ/π_T in nats from which a token enters the mean; null for all tokens"
    )
    clip: float = setting(20.0, "log π_θ/π_T of a token counts as this at most, nats", above=0, high=20)
    normalize: bool = setting(False, "divided by the mean weight of the batch's responses (one more student pass)")

    keeps_all = True

    @property
    def needs_batch(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `Weighting`."""
        return self.normalize

    def weights(self, given: "WeightInput") -> "Tensor":
        """exp(mean_t min(−A_t, clip)) for all tokens of a response; 1 where no token reaches the threshold."""
        ratios = (-given.advantages).clamp(max=self.clip)
        chosen = given.mask if self.threshold is None else given.mask & (ratios >= self.threshold)
        mean = ratios.where(chosen, ratios.new_zeros(())).sum(-1) / chosen.sum(-1).clamp(min=1)
        weights = mean.exp()
        weights = weights / weights.mean() if self.normalize else weights
        return weights[:, None].expand(given.mask.shape)
