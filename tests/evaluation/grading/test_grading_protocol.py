"""What processes that grade say to each other: lines that are never trusted, and values that are only values."""

import math
import os
import select
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwopd.errors import EngineError
from iwopd.evaluation.grading import MathGrader, Verdict, boxed
from iwopd.evaluation.grading.boxed import last_boxed
from iwopd.evaluation.grading.lines import Broken, Late, Lines
from iwopd.evaluation.grading.plain import DEEPEST, Opaque, Unplain, decode, encode
from iwopd.evaluation.grading.pool import Pool
from iwopd.evaluation.grading.programs import code_block
from iwopd.types import Prompt

# ---------------------------------------------------------------------------------------------- lines


@pytest.fixture
def pipes() -> Iterator[tuple[Lines, Lines]]:
    """Who asks, and who answers."""
    ends = [*os.pipe(), *os.pipe()]
    yield Lines(ends[0], ends[3], longest=1000), Lines(ends[2], ends[1])
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(
    "said",
    [
        b'{"id": "forged", "verdict": true}\n',
        b'{"id": "NUMBER", "verdict": true}\n{"id": "NUMBER", "verdict": true}\n',
        b'{"id": "NUMBER", "verdict": true}\nx',
        b'{"id": "NUMBER", "verdict": "true"}\n',
        b'{"id": "NUMBER"}\n',
        b'["NUMBER"]\n',
        b"true\n",
        b"\xff\xfe\n",
        b"[" * 900 + b"\n",
        b"x" * 200_000,
    ],
    ids=lambda said: said[:40],
)
def test_what_is_no_answer_is_none(pipes: tuple[Lines, Lines], said: bytes) -> None:
    asker, other = pipes

    def answer() -> None:
        number = other.receive()["id"]
        left = said.replace(b"NUMBER", number.encode())
        while left and not over.is_set():
            left = left[os.write(other.writing, left[:1000]) :]

    over, thread = threading.Event(), threading.Thread(target=answer)
    thread.start()
    with pytest.raises(Broken):
        asker.ask({"answer": "1"}, {"verdict": bool}, 60)
    over.set()
    while thread.is_alive():  # it may still wait for somebody to read
        if select.select([asker.reading], [], [], 0.01)[0]:
            os.read(asker.reading, 2**16)
    thread.join()


def test_nobody_answers(pipes: tuple[Lines, Lines]) -> None:
    with pytest.raises(Late):
        pipes[0].ask({}, {}, 0.01)
    with pytest.raises(Late):  # nor reads
        pipes[0].ask({"much": "x" * 10**6}, {}, 0.01)
    assert pipes[0].quiet
    os.write(pipes[1].writing, b"x")
    assert not pipes[0].quiet


FORGER = """
import os, sys
descriptor, how = int(sys.argv[1]), sys.argv[2]
os.write(descriptor, b'{"ready": true}\\n')
for line in sys.stdin:
    number = line.split('"id": "')[1].split('"')[0].encode()
    answer = b'{"verdict": true, "id": "' + number + b'"}\\n'
    forged = b'{"verdict": true, "id": "x"}\\n'
    os.write(descriptor, {"garbage": b"garbage\\n", "many": answer * 4, "forged": forged * 4, "after": answer}[how])
    if how == "after":
        os.write(descriptor, forged)
"""


@pytest.mark.process
@pytest.mark.parametrize("how", ["garbage", "many", "forged", "after"])
def test_a_pool_whose_processes_are_made_to_lie_decides_nothing_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (tmp_path / "forger.py").write_text(FORGER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = Pool("test", "forger", [how], 20, {"verdict": bool})
    pool.count = 1
    try:
        found = pool.ask([{"answer": str(number)} for number in range(3)])
    finally:
        pool.close()
    # One that says more after a right answer may have been read before that: right for that request alone.
    assert all(line is None or (how == "after" and line["verdict"]) for line in found)


@pytest.mark.process
def test_a_process_that_does_not_start_says_why() -> None:
    pool = Pool("eval.sandbox=nonsense", "iwopd.evaluation.grading.nothing", [], 1, {})
    with pytest.raises(EngineError, match=r"eval.sandbox=nonsense: .* does not start: see why with: .*nothing"):
        pool.ask([{}])
    pool.close()


# ---------------------------------------------------------------------------------------------- values

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
SCALARS |= st.complex_numbers(allow_nan=False) | st.fractions() | st.decimals(allow_nan=False)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.lists(inner).map(deque)
    | st.dictionaries(SCALARS, inner) | st.sets(SCALARS) | st.frozensets(SCALARS),
    max_leaves=10,
)  # fmt: skip


def same(mine: object, other: object) -> bool:
    if type(mine) is not type(other):
        return False
    if isinstance(mine, dict) and isinstance(other, dict):
        return same(list(mine.items()), list(other.items()))
    if isinstance(mine, (list, tuple, deque)) and isinstance(other, (list, tuple, deque)):
        return len(mine) == len(other) and all(map(same, mine, other))
    return mine == other


@given(VALUES)
def test_values_come_back_as_they_were(value: object) -> None:
    assert same(decode(encode(value, opaque=False)), value)


@pytest.mark.parametrize(
    "value",
    [10**5000, -(10**5000), range(0, 10**30, 7), OrderedDict(a=1), Counter("aab"), True, {1: {2: [3]}}, {(1, 2): {3}}],
    ids=lambda value: str(type(value)),
)
def test_values_of_many_types(value: object) -> None:
    assert same(decode(encode(value, opaque=False)), value)


@pytest.mark.parametrize(
    "value", [numpy.float64(0.1), numpy.int8(3), numpy.eye(2), numpy.array(["a", "bc"]), numpy.zeros(0)]
)
def test_arrays(value: numpy.ndarray) -> None:
    found = decode(encode(value, opaque=False))
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    numpy.testing.assert_array_equal(found, value)


class Always(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def test_what_a_class_has_redefined_is_lost() -> None:
    found = decode(encode([Always(5), type("Mine", (list,), {"__eq__": lambda *rest: True})([1])], opaque=True))
    assert found == [5, [1]]
    assert found != [6, [1]]
    assert found != [5, [2]]


def test_other_values_are_equal_to_nothing() -> None:
    found = decode(encode(object(), opaque=True))
    assert isinstance(found, Opaque)
    assert found
    assert found != object()
    assert list(decode(encode(iter("ab"), opaque=True))) == ["a", "b"]
    assert decode(encode({1: 2}.keys(), opaque=True)) == {1}
    with pytest.raises(Unplain, match="function"):
        encode(lambda: 1, opaque=False)


def test_endless_and_deep_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iwopd.evaluation.grading.plain.MOST", 100)
    with pytest.raises(Unplain):
        encode(iter(int, 1), opaque=True)
    deep: list = []
    for _ in range(DEEPEST + 1):
        deep = [deep]
    with pytest.raises(Unplain):
        encode(deep, opaque=True)


@pytest.mark.parametrize(
    "found",
    [
        {},
        [],
        ["module", "os"],
        ["int"],
        ["int", "x"],
        [["list"]],
        ["dict", 1],
        ["set", ["list"]],
        ["numpy", "O", True, [1], ""],
        ["numpy", "f8", True, [9], "00"],
        ["Fraction", "1", "0"],
        ["Decimal", "x"],
        ["range", 1, 2, 0],
        ["bytes", "zz"],
    ],
    ids=str,
)
def test_what_is_no_value_is_refused(found: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  any of it
        decode(found)


def test_numbers_that_are_none_stay_so() -> None:
    assert math.isnan(decode(encode(math.nan, opaque=False)))
    assert decode(encode(-math.inf, opaque=False)) == -math.inf
    assert decode(encode(Decimal("1.10"), opaque=False)) == Fraction(11, 10)


# ---------------------------------------------------------------------------------------------- a model's text


def work(function: Callable[[str], object], text: str, name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Characters that a pattern of `boxed` is asked to look at."""
    seen, pattern = [0], getattr(boxed, name)

    class Counted:
        def finditer(self, text: str) -> Iterator:
            seen[0] += len(text)
            return pattern.finditer(text)

    monkeypatch.setattr(boxed, name, Counted())
    function(text)
    monkeypatch.setattr(boxed, name, pattern)
    return seen[0]


@pytest.mark.parametrize("part", [r"\boxed{ x ", r"\boxed{x} ", r"\boxed{{x} ", r"\fbox {", r"\boxed{\{"])
def test_braces_are_matched_in_one_pass(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = part * 4000
    assert work(last_boxed, text, "BRACE", monkeypatch) == len(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} \boxed{2} \boxed{", None),
        (r"\boxed{ \boxed{1} \boxed{2}", "2"),
        (r"\boxed{a\{b}", r"a\{b"),
        (r"\boxed{\\}", r"\\"),
        (r"} \boxed{{1}}", "{1}"),
        (r"\boxed{1}}", "1"),
        (r"\boxed{1\}", None),
        ("\\boxed{1\\", None),
    ],
)
def test_boxes(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@pytest.mark.process
@pytest.mark.parametrize(
    "answer", ["€" * 3900, r"\$ " * 1000, "((" * 500 + ",1" + "),1)" * 500, "1," * 1900, "a" * 300]
)
def test_long_and_strange_answers_are_left_to_a_process_with_limits(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grader, asked = MathGrader(), list[dict]()
    monkeypatch.setattr(
        Pool, "ask", lambda self, requests: asked.extend(requests) or [{"verdict": False}] * len(requests)
    )
    assert grader([(rf"\boxed{{{answer}}}", Prompt("p", [1], "", answer="7"))]) == [Verdict(False, answer.strip())]
    assert [request["answer"] for request in asked] == [answer.strip()]


@pytest.mark.process
def test_whatever_comparing_does_an_evaluation_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*rest: object) -> bool:
        raise RecursionError

    monkeypatch.setattr("iwopd.evaluation.grading.mathematics.compare", fail)
    grader = MathGrader()
    try:
        assert grader([(r"\boxed{€€8}", Prompt("p", [1], "", answer="8"))])[0].answer == "€€8"
    finally:
        grader.close()


def test_looking_for_code_blocks_is_linear_in_length() -> None:
    """In every other way this many spaces would take hours."""
    text = "```" + " " * 2_000_000 + "x"
    assert code_block(text, "f") == text
