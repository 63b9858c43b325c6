"""Which prompts a step gets: one source, or several mixed by weight."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from iwopd.errors import ConfigError
from iwopd.seeding import derive_seed
from iwopd.types import Prompt


class Prompts(Protocol):
    """Batches of prompts by step."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """All of them."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Steps until the first prompt is asked a second time."""
        ...

    def batch(self, step: int) -> list[Prompt]:
        """The prompts of step `step`, counted from 0; no two alike."""
        ...


@dataclass(frozen=True)
class PromptStream:
    """One source: each epoch is a new order, from the seed alone; what does not fill a batch waits for another epoch.

    Raises:
        ConfigError: fewer prompts than one batch.
    """

    prompts: Sequence[Prompt]
    batch_size: int
    seed: int
    name: str | None = None
    _orders: dict[int, list[int]] = field(default_factory=dict[int, list[int]], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.prompts) < self.batch_size:
            raise ConfigError(self._too_few)

    @property
    def _too_few(self) -> str:
        count = len(self.prompts)
        if self.name:
            return (
                f"data.sources.{self.name}: has {count} prompts, fewer than its {self.batch_size} of a batch; lower "
                "its weight or data.batch_size"
            )
        return (
            f"data.batch_size={self.batch_size}: the data has {count} prompts, fewer than one batch; set "
            f"data.batch_size={count} or less"
        )

    @property
    def steps_per_epoch(self) -> int:
        """See `Prompts`."""
        return len(self.prompts) // self.batch_size

    def batch(self, step: int) -> list[Prompt]:
        """See `Prompts`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:  # that of the epoch under way is kept: a step need not shuffle all prompts
            self._orders.clear()
            self._orders[epoch] = self._order(epoch)
        chosen = self._orders[epoch][place * self.batch_size : (place + 1) * self.batch_size]
        return [self.prompts[index] for index in chosen]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.prompts)))
        names = [self.name] if self.name else []
        random.Random(derive_seed(self.seed, "order", epoch, *names)).shuffle(order)
        return order


@dataclass(frozen=True)
class Mixture:
    """Several sources, each with its share of every batch and epochs of its own."""

    streams: Sequence[PromptStream]
    prompts: Sequence[Prompt] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", [prompt for stream in self.streams for prompt in stream.prompts])

    @property
    def steps_per_epoch(self) -> int:
        """See `Prompts`."""
        return min(stream.steps_per_epoch for stream in self.streams)

    def batch(self, step: int) -> list[Prompt]:
        """See `Prompts`. Each source is spread evenly over the batch, so that each optimiser step of several
        (`optim.updates_per_batch`) sees every source in proportion."""
        placed = [
            (Fraction(2 * index + 1, len(batch)), number, prompt)
            for number, batch in enumerate(stream.batch(step) for stream in self.streams)
            for index, prompt in enumerate(batch)
        ]
        return [prompt for _, _, prompt in sorted(placed, key=lambda item: item[:2])]


def shares(weights: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """Prompts of each source in a batch: in proportion to the weights, rounded so that they add up to `batch_size`
    (largest remainders, the earlier source where they tie).

    Raises:
        ConfigError: a source would get none.
    """
    total = sum(weights.values())
    exact = {name: batch_size * weight / total for name, weight in weights.items()}
    found = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: found[name] - exact[name])
    for name in by_remainder[: batch_size - sum(found.values())]:
        found[name] += 1
    for name, share in found.items():
        if not share:
            raise ConfigError(
                f"data.sources.{name}.weight={weights[name]:g}: gives it none of the {batch_size} prompts of a batch; "
                "raise it, or data.batch_size"
            )
    return found
