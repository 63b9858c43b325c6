"""Which sequences make a pass together, and where the responses to one prompt read it once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from iwopd.types import Rollout

MAX_PADDING_RATIO = 0.1
MIN_FILL_RATIO = 1 / 4  # of the limit
# Of a token's memory: the keys and values that each response has of a token of its prompt.
KEPT_RATIO = 1 / 4
MIN_SPARED_RATIO = 0.2  # of the tokens: passes are twice as many, and attention to shared prompts needs a mask


@dataclass(frozen=True)
class _Unit:
    """Sequences that stay together, the longest first.

    Attributes:
        before: tokens that all of them read at one time; 0 where each reads its own.
        after: tokens of the longest one, without these.
    """

    indices: list[int]
    before: int
    after: int

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.before + len(self.indices) * self.after


def token_batches(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices grouped by length, longest first, so that a group's padded size stays within `limit` tokens.

    A sequence longer than the limit makes a group of its own. A group that is worth a pass of its own takes no sequence
    that would be padded by more than `MAX_PADDING_RATIO` of the longest.
    """
    return Packing(list(lengths)).groups(limit)


def _batches(units: Sequence[_Unit], limit: int) -> list[list[_Unit]]:
    groups: list[list[_Unit]] = []
    for unit in sorted(units, key=lambda unit: (-unit.after, unit.indices[0])):
        if groups and _fits(groups[-1], unit, limit):
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


def _fits(group: Sequence[_Unit], unit: _Unit, limit: int) -> bool:
    longest = group[0].after
    wasteful = unit.after < (1 - MAX_PADDING_RATIO) * longest and _padded(group) >= MIN_FILL_RATIO * limit
    return _padded([*group, unit]) <= limit and not wasteful


def _padded(group: Sequence[_Unit]) -> int:
    """Tokens of a pass, padding included, and `KEPT_RATIO` of the prompt for each response: what it takes of memory."""
    before, after = (max(getattr(unit, name) for unit in group) for name in ("before", "after"))
    return sum(before + len(unit.indices) * _row(before, after) for unit in group)


def _row(before: int, after: int) -> int:
    return after + math.ceil(KEPT_RATIO * before)


@dataclass(frozen=True)
class Packing:
    """How sequences, each a prompt and a response, are put together into passes.

    Attributes:
        lengths: of the sequences, tokens.
        units: of responses that read one prompt together; None where each reads its own.
    """

    lengths: list[int]
    units: list[_Unit] | None = None

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], stops: Sequence[int], *, share: bool = False) -> "Packing":
        """Of prompts and responses that are cut at `stops`.

        Args:
            share: let the responses to one prompt read it once, where that spares `MIN_SPARED_RATIO` of the tokens.
        """
        lengths = [len(rollout.prompt_ids) + stop for rollout, stop in zip(rollouts, stops, strict=True)]
        if not share:
            return cls(lengths)
        same: dict[bytes, list[int]] = {}
        for index, rollout in enumerate(rollouts):
            same.setdefault(rollout.prompt_ids.tobytes(), []).append(index)
        units = [
            unit for indices in same.values() for unit in _split(indices, len(rollouts[indices[0]].prompt_ids), stops)
        ]
        spares = sum(unit.tokens for unit in units) <= (1 - MIN_SPARED_RATIO) * sum(lengths)
        return cls(lengths, units if spares else None)

    @property
    def shared(self) -> bool:
        """Whether responses to one prompt read it once."""
        return self.units is not None

    @property
    def tokens(self) -> int:
        """Of all passes, before units are padded to each other."""
        return sum(self.lengths) if self.units is None else sum(unit.tokens for unit in self.units)

    def groups(self, limit: int) -> list[list[int]]:
        """Indices that make a pass together, which takes no more than `limit` tokens do unless it is one sequence."""
        return [[index for unit in group for index in unit.indices] for group in self._batches(limit)]

    def halved(self, limit: int) -> int:
        """Half of the most tokens that several sequences have in a pass; 0 where each has a pass of its own."""
        groups = self._batches(limit)
        return max((_padded(group) for group in groups if len(group) > 1 or len(group[0].indices) > 1), default=0) // 2

    def _batches(self, limit: int) -> list[list[_Unit]]:
        if self.units is None:
            return _batches([_Unit([index], 0, length) for index, length in enumerate(self.lengths)], limit)
        return _batches([part for unit in self.units for part in _cut(unit, self.lengths, limit)], limit)


def _split(indices: Sequence[int], prompt: int, stops: Sequence[int]) -> list[_Unit]:
    """Units of responses to one prompt that are the fewest tokens in all: unlike lengths would be padded to each other,
    and a unit more reads the prompt once more."""
    order = sorted(indices, key=lambda index: (-stops[index], index))
    least, begin = [0], list[int]()  # tokens of the first responses, and where the last of their units begins
    for end in range(1, len(order) + 1):
        costs = [least[start] + prompt + (end - start) * stops[order[start]] for start in range(end)]
        begin.append(min(range(end), key=costs.__getitem__))
        least.append(costs[begin[-1]])
    units, end = list[_Unit](), len(order)
    while end:
        start = begin[end - 1]
        units.append(_Unit(order[start:end], prompt, stops[order[start]]))
        end = start
    return units


def _cut(unit: _Unit, lengths: Sequence[int], limit: int) -> list[_Unit]:
    """A unit in parts that fit into a pass."""
    rows = max(1, (limit - unit.before) // _row(unit.before, unit.after))
    parts = [unit.indices[start : start + rows] for start in range(0, len(unit.indices), rows)]
    return [_Unit(part, unit.before, lengths[part[0]] - unit.before) for part in parts]
