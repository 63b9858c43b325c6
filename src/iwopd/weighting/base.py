"""What every weighting scheme is: its settings, the window that can have weight, and its formula.

A scheme is the config's own section, so its class loads without torch: `iwopd.numerics` loads it with the first
formula.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from omegaconf import MISSING

from iwopd.setting import setting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput

NAME = "name of the scheme; choose it with weighting=NAME"


@dataclass(kw_only=True, slots=True)
class Weighting:
    """Which tokens count. A subclass is one scheme: `scheme` has its name as default, and further settings follow.

    Attributes:
        needs_batch: `weights` must see the whole rollout batch at once, so the student scores it before the update.
        keeps_all: every token of the window counts, however small its weight: it is in the mean also where float32 has
            no number small enough. Else the tokens of weight 0 are those that the scheme leaves out.
        measures: what it needs of student's and teacher's distributions, names of `iwopd.numerics.MEASURES`; the loss
            must then have a signal beyond the sampled one.
        advantage: of every token in a policy gradient, nats, in place of A_t: a control without a teacher. None: A_t.
    """

    scheme: str = setting(MISSING, NAME)

    needs_batch = False
    keeps_all = False
    measures = cast(tuple[str, ...], ())
    advantage: ClassVar[float | None] = None

    def weights(self, given: "WeightInput") -> "Tensor":
        """[batch, time] weights, detached; what they are outside the mask does not matter."""
        raise NotImplementedError  # each scheme has its own

    def bounds(self, length: int, progress: float) -> tuple[int, int]:
        """The window ``[start, stop)`` of a response of `length` tokens outside which every weight is 0; what lies
        after it is neither scored nor trained on.

        Args:
            progress: share of the training done, 0 to 1.
        """
        return 0, length

    def window(self, progress: float) -> Callable[[int], tuple[int, int]]:
        """`bounds` at one point of the training."""
        return lambda length: self.bounds(length, progress)

    @property
    def name(self) -> str:
        """For messages and tables."""
        return self.scheme

    @property
    def annealed(self) -> str | None:
        """The setting by which weights change over the training; None where they do not."""
        return None

    @classmethod
    def presets(cls) -> Mapping[str, "Weighting"]:
        """What `diagnose` compares of this scheme at the first step of a training, by the presets' names."""
        made = cls()
        return {made.scheme: made}

    def problems(self) -> Iterator[str]:
        """What is wrong with the settings beyond their ranges, one line each."""
        yield from ()
