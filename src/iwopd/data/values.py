"""Cells as text and as numbers: a reference, an id or a name is compared as it was written, a filter's number as a
number."""

import re
from decimal import Decimal

NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.IGNORECASE)
WHOLE = re.compile(r"[+-]?[0-9]+")
NO_VALUE = {"", "na", "n/a", "nan", "null", "none", "<na>"}  # how tables without types write a missing number
TRUTH = {"true": True, "false": False}


class Written(float):
    """A number of a JSON file that prints as it is written there: 3.10 stays 3.10, and 1e3 stays 1e3."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> "Written":
        made = super().__new__(cls, text)
        made.text = text
        return made

    def __str__(self) -> str:
        return self.text


def written_integer(text: str) -> int | Written:
    """A whole number; -0, which an int would print as 0, as it is written.

    Raises:
        ValueError: more digits than Python reads (4,300).
    """
    return Written(text) if text == "-0" else int(text)


def text_of(value: object) -> str:
    """A cell as text: as it is written in a file of text, and for typed columns the shortest text that says the same
    (true and false as in JSON, decimals with all their places, dates in ISO form)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def is_missing(value: object) -> bool:
    """True for null, and for the NaN that data frames put in its place."""
    return value is None or (isinstance(value, float) and value != value)


def number_in(text: str) -> float | None:
    """The number that a text is, or None for a spelling of "no value".

    Raises:
        ValueError: the text is something else.
    """
    bare = text.strip()
    if bare.lower() in NO_VALUE:
        return None
    if not NUMBER.fullmatch(bare):
        raise ValueError(f"the text {text[:40]!r} is no number")
    return int(bare) if WHOLE.fullmatch(bare) else float(bare)


def truth_of(value: object) -> bool:
    """Whether a cell that is a condition by itself holds; texts true and false, and numbers, are what they say."""
    if isinstance(value, str):
        if value.strip().lower() in TRUTH:
            return TRUTH[value.strip().lower()]
        try:
            return bool(number_in(value))
        except ValueError:
            return True
    return not is_missing(value) and bool(value)
