"""What processes agree on, without processes: who does what, and what may wait."""

import re

import pytest
from support.paths import SOURCE

from iwopd.errors import NonFiniteError, OutOfMemoryError
from iwopd.parallel.ranks import Ranks
from iwopd.parallel.world import World


class Alone(Ranks):
    """Rank 0 of two, of which the other has nothing to say."""

    def __init__(self) -> None:
        World.__init__(self)
        self.rank, self.size = 0, 2
        self.gathered = 0

    def gather(self, item):
        self.gathered += 1
        return [item, type(item)()]


def passes(error: Exception) -> tuple[Alone, list[str]]:
    """What rank 0 does whose first of two passes fails so."""
    ranks, done = Alone(), list[str]()

    def make(group: list[int]) -> None:
        done.append("made")
        raise error

    with pytest.raises(type(error)):
        ranks.passes([[0], [1], [2], [3]], [4, 3, 2, 1], make, lambda: done.append("idle"))
    return ranks, done


def test_an_error_waits_until_the_others_passes_are_made() -> None:
    ranks, done = passes(NonFiniteError("NaN"))
    assert done == ["made", "idle"]
    assert ranks.gathered == 1


def test_full_memory_does_not_wait_for_there_is_half_a_pass() -> None:
    ranks, done = passes(OutOfMemoryError("full"))
    assert done == ["made"]
    assert ranks.gathered == 0


@pytest.mark.parametrize(("size", "neighbours"), [(1, 1), (2, 1), (3, 1), (4, 2), (4, 4)])
def test_items_are_shared_out_once_for_each_group_of_neighbours(size: int, neighbours: int) -> None:
    shares = []
    for rank in range(size):
        world = World()
        world.rank, world.size = rank, size
        shares.append(world.share(range(7), neighbours))
    assert sorted(item for share in shares[::neighbours] for item in share) == list(range(7))
    assert all(shares[rank] == shares[rank - rank % neighbours] for rank in range(size))


def test_torch_distributed_is_known_in_two_places() -> None:
    users = {
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*.py")
        if re.search(r"^\s*(import|from) torch\.distributed", file.read_text(), re.MULTILINE)
    }
    assert users == {"models/sharding.py", "parallel/ranks.py"}
