"""What the page holds of responses, against a decoder of our own: the planes of bytes, put together again."""

import base64
import zlib
from typing import Any

import numpy
import pytest

from iwopd.report.tokens import BEND, COARSE, FINE, LEVELS, MISSING, Column, Packed, Response, encoded, packed

Array = Any


def response(size: int, seed: int = 0, key: str = "p0", **given: Any) -> Response:
    drawn = numpy.random.default_rng(seed)
    student, teacher = -drawn.exponential(1.0, (2, size))
    fields = {
        "key": ("maths", key, 0),
        "prompt": "1+1?",
        "answer": "2",
        "correct": True,
        "cut": False,
        "tokens": [f"t{number}" for number in drawn.integers(0, 50, size)],
        "student": student,
        "teacher": teacher,
        "advantages": teacher - student,
        "weights": {},
    }
    return Response(**{**fields, **given})


class Decoder:
    """The bytes of one response, read in order."""

    def __init__(self, entry: dict[str, Any], payload: str):
        self.entry, self.data, self.place = entry, zlib.decompress(base64.b64decode(payload)), 0
        size = entry["tokens"]
        self.ids = self.planes(3)
        self.student, self.teacher = self.nats(self.planes(2)), self.nats(self.planes(2))
        self.advantages = signed(self.planes(3)) / FINE if entry["ownAdvantages"] else self.teacher - self.student
        codes: dict[int, Array] = {}
        self.weights: list[Array | None] = []
        for scheme, kept in enumerate(entry["weights"]):
            if kept is None:
                self.weights.append(None)
            elif "palette" in kept:
                one = len(kept["palette"]) == 1
                self.weights.append(numpy.array(kept["palette"])[numpy.zeros(size, int) if one else self.planes(1)])
            else:
                same = codes.get(kept.get("as", -1))
                codes[scheme] = (
                    signed(self.planes(2)).cumsum() if same is None else same[:: -1 if "mirrored" in kept else 1]
                )
                self.weights.append(kept["low"] + (kept["high"] - kept["low"]) * codes[scheme] / LEVELS)
        assert self.place == len(self.data), "bytes are left over"

    def planes(self, count: int) -> Array:
        size, values = self.entry["tokens"], numpy.zeros(self.entry["tokens"], int)
        for _ in range(count):
            values = values * 256 + numpy.frombuffer(self.data, numpy.uint8, size, self.place)
            self.place += size
        return values

    @staticmethod
    def nats(codes: Array) -> Array:
        bend = BEND * FINE
        found = numpy.where(codes < bend, codes / FINE, BEND + (codes - bend) / COARSE)
        return numpy.where(codes == MISSING, numpy.nan, -found)


def signed(codes: Array) -> Array:
    return numpy.where(codes % 2, -(codes + 1) // 2, codes // 2)


def test_every_token_comes_back() -> None:
    given, vocabulary = response(500, student=-numpy.linspace(0, 40, 500)), dict[str, int]()
    found = Decoder(*encoded(given, vocabulary, []))
    texts = list(vocabulary)
    assert [texts[number] for number in found.ids] == list(given.tokens)
    near = given.student > -BEND
    assert numpy.abs(found.student - given.student)[near].max() <= 0.5 / FINE + 1e-9
    assert numpy.abs(found.student - given.student).max() <= 0.5 / COARSE + 1e-9
    assert numpy.abs(found.teacher - given.teacher).max() <= 0.5 / FINE + 1e-9


@pytest.mark.parametrize("name", ["smooth", "few", "one", "sharp"])
def test_weights_come_back(name: str) -> None:
    size = 3000
    weights = {
        "smooth": 1 + 0.5 * (1 - numpy.random.default_rng(1).random(size).cumsum() / size),
        "few": (numpy.arange(size) < 900).astype(float),
        "one": numpy.full(size, 1.234567),
        "sharp": numpy.exp(numpy.random.default_rng(2).normal(0, 3, size)),
    }[name]
    [found] = Decoder(*encoded(response(size, weights={name: weights}), {}, [name])).weights
    assert found is not None
    exact = name in ("few", "one")
    assert numpy.abs(found - weights).max() <= (1e-6 if exact else 0.5001 * numpy.ptp(weights) / LEVELS)


def test_weights_that_differ_in_scale_or_order_alone_are_kept_once() -> None:
    size = 1000
    fall = 1.5 - 0.5 * numpy.random.default_rng(1).random(size).cumsum() / size
    weights = {"iw": fall, "surrogate": 2 * fall - 2, "reversed": fall[::-1]}
    entry, payload = encoded(response(size, weights=weights), {}, list(weights))
    assert [each.get("as") for each in entry["weights"]] == [None, 0, 0]
    for found, expected in zip(Decoder(entry, payload).weights, weights.values(), strict=True):
        assert found is not None
        assert numpy.abs(found - expected).max() <= 0.51 * numpy.ptp(expected) / LEVELS


def test_advantages_that_are_no_difference_of_both_are_kept() -> None:
    given = response(50)
    given = response(50, advantages=1.25 * given.advantages - 20.0)
    found = Decoder(*encoded(given, {}, []))
    assert numpy.abs(found.advantages - given.advantages).max() <= 0.5 / FINE + 1e-9


def test_what_was_not_scored_stays_unknown() -> None:
    nothing = numpy.full(10, numpy.nan)
    found = Decoder(*encoded(response(10, teacher=nothing, advantages=nothing), {}, []))
    assert numpy.isnan(found.teacher).all()
    assert not numpy.isnan(found.student).any()


def test_an_empty_response_is_one() -> None:
    empty = numpy.zeros(0)
    given = response(0, student=empty, teacher=empty, advantages=empty, weights={"iw": empty})
    assert len(Decoder(*encoded(given, {}, ["iw"])).ids) == 0


def made(columns: list[Column], most: int = 10**6) -> Packed:
    return packed(columns, most)


def test_columns_are_put_side_by_side_by_problem() -> None:
    before = Column("before", [response(5, key="a"), response(5, key="b")])
    after = Column("after", [response(7, key="b"), response(7, key="c")])
    found = made([before, after])
    assert [problem["responses"] for problem in found.index["problems"]] == [[0, None], [1, 2], [None, 3]]
    assert [each["tokens"] for each in found.index["responses"]] == [5, 5, 7, 7]


def test_a_page_has_a_bound_and_says_what_is_missing() -> None:
    columns = [Column("before", [response(4000, seed, key=f"p{seed}") for seed in range(8)])]
    whole = made(columns)
    assert (whole.shown, whole.problems) == (8, 8)
    size = sum(map(len, whole.payloads))
    half = made(columns, size // 2)
    assert (half.shown, half.problems) == (3, 8)
    assert sum(map(len, half.payloads)) <= size // 2
    assert made(columns, 10).shown == 0
