"""Values as plain JSON and back, types included: what a program is given and returns, without anything that runs.

    (1, {2.5}, 10**40)  ⇄  ["tuple", 1, ["set", 2.5], ["int", "0x1d63…"]]

A value of another type comes back as an `Opaque`, equal to nothing but itself. Subclasses come back as what they derive
from, so whatever they have redefined, such as ``__eq__``, is lost.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any, cast

import numpy

DEEPEST = 200  # values within values
MOST = 2_000_000  # values in all
EXACT = 2**53  # from here on integers are hexadecimal: reading many decimal digits is slow, and refused by Python
SEVERAL: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
MAPPINGS: dict[str, type] = {"OrderedDict": OrderedDict, "Counter": Counter, "dict": dict}
VIEWS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "keys": (KeysView, lambda items: dict.fromkeys(items).keys()),
    "values": (ValuesView, lambda items: dict(enumerate(items)).values()),
    "items": (ItemsView, lambda items: dict(items).items()),
    "iterator": (Iterator, lambda items: iter(list(items))),
}


class Opaque:
    """A value that only a program itself could use; true or false as it was there."""

    def __init__(self, kind: str, true: bool):
        self.kind, self.true = kind, true

    def __bool__(self) -> bool:
        return self.true


class Unplain(ValueError):
    """A value that is too large, or too deep, or of another kind."""


def encode(value: object, *, opaque: bool) -> object:
    """A value as JSON.

    Args:
        opaque: what is of another type becomes `Opaque`, and is not refused.

    Raises:
        Unplain: it cannot be written down.
    """
    return _Encoder(opaque).encode(value, DEEPEST)


class _Encoder:
    def __init__(self, opaque: bool):
        self.opaque, self.left = opaque, MOST

    def encode(self, value: object, depth: int) -> object:
        self.left -= 1
        if depth < 0 or self.left < 0:
            raise Unplain("a value that is too large or too deep")
        if value is None or type(value) is bool:
            return value
        if isinstance(value, (numpy.generic, numpy.ndarray)):
            return self._numpy(value)
        if isinstance(value, int):
            number = int.__int__(value)
            return number if -EXACT < number < EXACT else ["int", hex(number)]
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, str):
            return str.__str__(value)
        for name, kind in {**SEVERAL, **MAPPINGS}.items():
            if isinstance(value, kind):
                items = dict.items(value) if name in MAPPINGS else kind.__iter__(value)  # pyright: ignore
                return [name, *self._all(items, depth, pairs=name in MAPPINGS)]
        return self._other(value, depth)

    def _all(self, items: Iterable[Any], depth: int, *, pairs: bool = False) -> list[object]:
        items = islice(items, self.left + 1)
        if pairs:
            return [self.encode(each, depth - 1) for pair in items for each in pair]
        return [self.encode(each, depth - 1) for each in items]

    def _other(self, value: object, depth: int) -> object:
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        if isinstance(value, (bytes, bytearray)):
            return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
        if isinstance(value, range):
            return ["range", *(self.encode(each, depth - 1) for each in (value.start, value.stop, value.step))]
        if isinstance(value, Fraction):
            return ["Fraction", hex(value.numerator), hex(value.denominator)]
        if isinstance(value, Decimal):
            return ["Decimal", str(value)]
        if not self.opaque:
            raise Unplain(f"a value of type {type(value).__name__}")
        for name, (kind, _) in VIEWS.items():
            if isinstance(value, kind):
                return [name, *self._all(cast(Iterable[object], value), depth)]
        return ["opaque", type(value).__name__, bool(value)]

    def _numpy(self, value: numpy.generic | numpy.ndarray) -> object:
        if value.dtype.kind not in "biufcSU" or value.size > self.left:
            if self.opaque and value.size <= self.left:
                return ["opaque", str(value.dtype), True]
            raise Unplain(f"an array of {value.dtype}")
        return ["numpy", value.dtype.str, isinstance(value, numpy.ndarray), list(value.shape), value.tobytes().hex()]


def decode(found: object, depth: int = DEEPEST) -> Any:  # noqa: ANN401  whatever a program returned; callers know
    """The value.

    Raises:
        ValueError: `found` is not what `encode` makes.
    """
    if not isinstance(found, list):
        if isinstance(found, dict):
            raise ValueError("an object")
        return found
    try:
        name, *rest = found
        return _decode(name, rest, depth)
    except (TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        raise ValueError(str(error)) from None


def _decode(name: str, rest: list[Any], depth: int) -> object:
    if depth < 0:
        raise ValueError("too deep")
    if name in SEVERAL:
        return SEVERAL[name](decode(each, depth - 1) for each in rest)
    if name in MAPPINGS:
        pairs = iter([decode(each, depth - 1) for each in rest])
        return MAPPINGS[name](dict(zip(pairs, pairs, strict=True)))
    if name in VIEWS:
        return VIEWS[name][1]([decode(each, depth - 1) for each in rest])
    if name == "int":
        return int(rest[0], 16)
    if name == "complex":
        return complex(*map(float, rest))
    if name in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[name].fromhex(rest[0])
    if name == "range":
        return range(*(decode(each, depth - 1) for each in rest))
    if name == "Fraction":
        return Fraction(int(rest[0], 16), int(rest[1], 16))
    if name == "Decimal":
        return Decimal(rest[0])
    if name == "opaque":
        return Opaque(str(rest[0]), bool(rest[1]))
    if name == "numpy":
        return _numpy(*rest)
    raise ValueError(f"of no known type: {str(name)[:40]}")


def _numpy(kind: str, whole: bool, shape: list[int], content: str) -> object:
    dtype = numpy.dtype(kind)
    if dtype.kind not in "biufcSU":
        raise ValueError(f"an array of {dtype}")
    array = numpy.frombuffer(bytearray.fromhex(content), dtype).reshape(shape)
    return array if whole else array[()]
