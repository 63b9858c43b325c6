"""Which rank makes which passes: a pure function of the lengths, so that all ranks know it without a word."""

from collections.abc import Sequence


def deal(groups: Sequence[Sequence[int]], lengths: Sequence[int], ranks: int) -> list[list[list[int]]]:
    """The groups of each rank: the costliest that is left goes to the rank with the least to do.

    A pass through a sharded model is one that all ranks make together. So each rank gets as many groups, and where
    there are none left for it an empty one, for which it makes a pass without a loss.

    Args:
        groups: indices of sequences that make a pass together.
        lengths: of the sequences, tokens; a group costs its longest one times their number.
        ranks: processes to deal to.

    Returns:
        Per rank, its groups in the order they were given in, with empty ones at the end; of one rank, all of them.
    """
    costs = [max(lengths[index] for index in group) * len(group) for group in groups]
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for place in sorted(range(len(groups)), key=lambda place: (-costs[place], place)):
        rank = min(range(ranks), key=lambda rank: (loads[rank], rank))
        dealt[rank].append(place)
        loads[rank] += costs[place]
    passes = max(map(len, dealt))
    return [
        [list(groups[place]) for place in sorted(places)] + [[] for _ in range(passes - len(places))]
        for places in dealt
    ]


def limit_for(limit: int, tokens: int, ranks: int) -> int:
    """Tokens of a group, so that there is one for every rank: `limit`, or with several ranks an even share of all
    `tokens` if less."""
    return limit if ranks == 1 else min(limit, -(-tokens // ranks))
