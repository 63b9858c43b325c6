"""Rows of any source."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwopd.errors import DataError

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows, read as they are asked for.

    Attributes:
        columns: their names, where the format declares them beforehand; else the first row does.
    """

    columns: list[str] | None
    rows: Iterator[Row]


def check_names(names: Sequence[str], file: Path) -> None:
    """Raise DataError where several columns of `file` have one name."""
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        raise DataError(f"{file}: several columns are named {twice}; rename all but one")
