"""Responses for the page: every token's log-probs, advantage and weights, in a few bytes a token.

Arrays are quantised, their bytes laid out in planes (all high bytes, then all low ones), and each response deflated for
itself; the browser inflates the two that are looked at. Log-probs are off by at most 1/8192 nat (1/512 below −12 nats),
weights by 1/8190 of their range in the response, and not at all where a response has few different ones.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from iwopd.redact import printable

Array = NDArray[Any]
FINE, COARSE, BEND = 4096, 256, 12  # steps per nat up to so many nats below 0, and beyond them
MISSING = 65535  # a log-prob that there is not
LEVELS = 4095  # between the smallest and the largest weight of a response
PALETTE = 16  # different weights of a response that are kept as they are
MOST_BYTES = 8_500_000  # of all responses on a page


@dataclass(frozen=True, eq=False)
class Response:
    """One response of an evaluation.

    Attributes:
        key: benchmark, id of the problem and index among its samples.
        tokens: their texts.
        student, teacher: [tokens] log-probs, nats; NaN where there is none.
        advantages: [tokens] A_t, nats; NaN likewise.
        weights: [tokens] each, by scheme.
    """

    key: tuple[str, str, int]
    prompt: str
    answer: str | None
    correct: bool
    cut: bool
    tokens: Sequence[str]
    student: Array
    teacher: Array
    advantages: Array
    weights: Mapping[str, Array]


@dataclass(frozen=True)
class Column:
    """The responses of one evaluation of one run."""

    label: str
    responses: Sequence[Response]


@dataclass(frozen=True)
class Packed:
    """What the page has: an index, plain values for JSON; a base64 text for each response; how many problems there
    are, and how many found room."""

    index: dict[str, Any]
    payloads: list[str]
    problems: int
    shown: int


def packed(columns: Sequence[Column], most: int) -> Packed:
    """All columns' responses, side by side by problem; problems from the first on, as many as there is room for.

    Args:
        most: bytes of the payloads and of the tokens' texts together.
    """
    by_key = [{response.key: response for response in column.responses} for column in columns]
    keys = list(dict.fromkeys(key for column in by_key for key in column))
    schemes = list(dict.fromkeys(name for column in columns for each in column.responses for name in each.weights))
    vocabulary, payloads, problems, entries, size = dict[str, int](), list[str](), list[Any](), list[Any](), 0
    for key in keys:
        found = [column.get(key) for column in by_key]
        made = [None if each is None else encoded(each, vocabulary, schemes) for each in found]
        size += sum(len(payload) for _, payload in filter(None, made))
        if size + sum(len(text.encode(errors="replace")) + 4 for text in vocabulary) > most:
            break
        one = next(each for each in found if each is not None)
        places = list[int | None]()
        for each in made:
            places.append(None if each is None else len(entries))
            if each is not None:
                entries.append(each[0])
                payloads.append(each[1])
        name = f"{key[0]} {key[1]}" + (f" sample {key[2]}" if key[2] else "")
        problems.append({"name": name, "prompt": printable(one.prompt), "answer": one.answer, "responses": places})
    index = {
        "vocabulary": [printable(text) for text in vocabulary],
        "columns": [column.label for column in columns],
        "schemes": schemes,
        "nats": {"fine": FINE, "coarse": COARSE, "bend": BEND, "missing": MISSING},
        "problems": problems,
        "responses": entries,
    }
    return Packed(index, payloads, len(keys), len(problems))


def encoded(response: Response, vocabulary: dict[str, int], schemes: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The response's entry in the index, and its bytes as base64.

    Args:
        vocabulary: numbers of texts; new ones are added.
        schemes: whose weights, in this order.
    """
    ids = numpy.array([vocabulary.setdefault(text, len(vocabulary)) for text in response.tokens], numpy.uint32)
    planes = [*_planes(ids, 3), *_planes(_nats(response.student), 2), *_planes(_nats(response.teacher), 2)]
    difference = response.teacher - response.student
    own = not numpy.allclose(response.advantages, difference, atol=1e-3, equal_nan=True)
    if own:
        planes += _planes(_zigzag(numpy.nan_to_num(response.advantages) * FINE), 3)
    described, seen = list[Any](), dict[bytes, int]()
    for place, name in enumerate(schemes):
        entry, more = _weights(response.weights.get(name), place, seen)
        described.append(entry)
        planes += more
    entry = {
        "tokens": len(ids),
        "correct": response.correct,
        "cut": response.cut,
        "ownAdvantages": own,
        "weights": described,
    }
    data = zlib.compress(b"".join(planes), 6)
    return entry, base64.b64encode(data).decode()


def _weights(values: Array | None, place: int, seen: dict[bytes, int]) -> tuple[Any, list[bytes]]:
    """How the weights of one scheme are kept, and their bytes; those that are another scheme's but for scale, or in the
    opposite order, take none."""
    if values is None or not len(values):
        return None, []
    values = numpy.nan_to_num(values.astype(numpy.float64))
    distinct, codes = numpy.unique(values, return_inverse=True)
    if len(distinct) <= PALETTE:
        palette = [round(value, 6) for value in distinct.tolist()]
        return {"palette": palette}, [] if len(palette) == 1 else _planes(codes.astype(numpy.uint32), 1)
    low, high = distinct[0], distinct[-1]
    codes = numpy.rint((values - low) / (high - low) * LEVELS).astype(numpy.int64)
    entry = {"low": float(low), "high": float(high), "levels": LEVELS}
    if (same := seen.get(codes.tobytes())) is not None:
        return entry | {"as": same}, []
    if (same := seen.get(codes[::-1].tobytes())) is not None:
        return entry | {"as": same, "mirrored": True}, []
    seen[codes.tobytes()] = place
    return entry, _planes(_zigzag(numpy.diff(codes, prepend=0)), 2)


def _nats(logprobs: Array) -> Array:
    below = numpy.clip(-logprobs.astype(numpy.float64), 0, None)
    steps = numpy.rint(numpy.where(below < BEND, below * FINE, BEND * FINE + (below - BEND) * COARSE))
    return numpy.where(numpy.isnan(steps), MISSING, numpy.minimum(steps, MISSING - 1)).astype(numpy.uint32)


def _zigzag(values: Array) -> Array:
    """Signed whole numbers as unsigned ones that are small where those are near 0."""
    whole = numpy.rint(values).astype(numpy.int64)
    return numpy.where(whole < 0, -2 * whole - 1, 2 * whole).astype(numpy.uint32)


def _planes(values: Array, count: int) -> list[bytes]:
    """The lowest `count` bytes of each number, those of the same place together, the high ones first."""
    return [((values >> (8 * place)) & 255).astype(numpy.uint8).tobytes() for place in reversed(range(count))]
