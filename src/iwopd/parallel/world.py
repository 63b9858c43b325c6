"""Who takes part in a run, and how they agree: one process, unless `iwopd.parallel.ranks` has opened a world of more."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from iwopd.parallel.deal import deal

Item = TypeVar("Item")


class World:
    """The processes of a run, as one of them sees them. This class is a world of one.

    Every method is called by all ranks, in the same order; each returns on all of them, or raises the same error there.

    Attributes:
        size: how many processes there are.
        leader: whether this one writes the run's files and speaks to its servers.
        stoppable: what surrounds work that no other process waits within, so that a signal may end it at once.
    """

    size: int = 1
    leader: bool = True

    def __init__(self) -> None:
        self.stoppable: Callable[[], AbstractContextManager[object]] = nullcontext

    def gather(self, item: Item) -> list[Item]:
        """Every rank's item, in the order of ranks; items are pickled."""
        return [item]

    def together(self, function: Callable[[], Item]) -> Item:
        """This rank's result of `function`, which all call; an error on one rank is raised on all."""
        return function()

    def alone(self, function: Callable[[], Item]) -> Item:
        """The result of `function`, which the leader alone calls; its error is raised on all."""
        return function()

    def my_share(self, groups: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[list[int]]:
        """The groups of `groups` whose passes through a model are this rank's, as many for each; see `deal`."""
        return deal(groups, lengths, self.size)[0]


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
