"""Only a window of each response: the paper's position study, and its controls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from iwopd import numerics
from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput

SIDES = ("first", "last", "middle", "random")


@dataclass(kw_only=True, slots=True)
class Window(Weighting):
    """Only a window of each response."""

    scheme: str = setting("window", NAME)
    side: str = setting("first", "where the window lies", choices=SIDES)
    fraction: float = setting(
        0.3, "share of the tokens kept, ceil(fraction · T)", above=0, high=1, fix="0.3 is the paper's window"
    )

    def weights(self, given: "WeightInput") -> "Tensor":
        """1 in the window, 0 elsewhere."""
        if self.side == "random":
            return numerics.random_window_weights(given, self.fraction)
        return numerics.fixed_window_weights(given, self.fraction, self._side)

    def bounds(self, length: int, progress: float) -> tuple[int, int]:
        """A random choice of tokens may reach from the first to the last."""
        return (0, length) if self.side == "random" else numerics.window_bounds(length, self.fraction, self._side)

    @property
    def _side(self) -> Literal["first", "last", "middle"]:
        assert self.side != "random"
        return self.side  # pyright: ignore[reportReturnType]  its choices are checked by the schema

    @property
    def name(self) -> str:
        """For messages and tables; the preset's, where there is one."""
        return f"{self.side}{self.fraction * 100:g}"

    @classmethod
    def presets(cls) -> Mapping[str, Weighting]:
        """One of each side, and a random tenth."""
        return {made.name: made for made in (*(cls(side=side) for side in SIDES), cls(side="random", fraction=0.1))}
