"""Who takes part in a run, and how they agree: one process, unless `iwopd.parallel.ranks` opened a world of more."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

Item = TypeVar("Item")


class World:
    """The processes of a run, as one of them sees them. This class is a world of one.

    Every method is called by all ranks, in the same order; each returns on all of them, or raises the same error there.

    Attributes:
        size: how many processes there are.
        rank: which of them this is.
        stoppable: surrounds what a signal may end at once, because it waits for no other process.
    """

    size: int = 1
    rank: int = 0

    def __init__(self) -> None:
        self.stoppable: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def leader(self) -> bool:
        """Whether this process writes the run's files and speaks to its servers."""
        return self.rank == 0

    def gather(self, item: Item) -> list[Item]:
        """Every rank's item, in the order of ranks; items are pickled."""
        return [item]

    def together(self, function: Callable[[], Item], *, stoppable: bool = False) -> Item:
        """This rank's result of `function`, which all call; an error on one rank is raised on all.

        Args:
            stoppable: it makes no call that other ranks take part in, so a signal may end it at once.
        """
        return function()

    def alone(self, function: Callable[[], Item]) -> Item:
        """The result of `function`, which the leader alone calls; its error is raised on all."""
        return function()

    def share(self, items: Sequence[Item], neighbours: int = 1) -> list[Item]:
        """The items that are this rank's to do, dealt one by one; `neighbours` ranks working together have the same."""
        return list(items[self.rank // neighbours :: self.size // neighbours])

    def passes(
        self,
        groups: Sequence[Sequence[int]],
        lengths: Sequence[int],
        make: Callable[[list[int]], None],
        idle: Callable[[], None],
    ) -> None:
        """Divide passes through a model over the ranks; see `deal`.

        Args:
            groups: indices of sequences that make a pass together.
            lengths: of the sequences, tokens.
            make: a pass of this rank's; other ranks make theirs at the same time.
            idle: takes part in the others' pass, where this rank has none left, or has raised an IwopdError.
        """
        for group in groups:
            make(list(group))


def processes() -> int:
    """How many processes the environment says that this run has, as torchrun, srun and the launcher set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class _Current:
    world = World()


def world() -> World:
    """The world of this process, as `torch.distributed` has a default process group."""
    return _Current.world


@contextmanager
def entered(opened: World) -> Iterator[World]:
    """`world()` is `opened` while the block lasts."""
    before, _Current.world = _Current.world, opened
    try:
        yield opened
    finally:
        _Current.world = before
