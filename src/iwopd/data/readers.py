"""Each format as rows, its cells as the file has them: text stays text, and numbers keep their spelling."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from iwopd.data.files import format_of, lines_of
from iwopd.data.table import Row, Table, check_names
from iwopd.data.values import Written, written_integer
from iwopd.errors import DataError

DELIMITERS = ",;\t|"

csv.field_size_limit(2**31 - 1)  # a solution may be longer than the 128 KiB that Python allows


def read(files: Sequence[Path], wanted: Sequence[str], *, only: bool, names: Sequence[Path] | None = None) -> Table:
    """The rows of one file, or of several of one format after another.

    Args:
        names: what the files are called, where they lie under other names.
        wanted: top-level columns that the config names; they tell which of a csv file's characters parts its cells.
        only: leave other columns out where that saves reading them.

    Raises:
        DataError: now or while rows are read: a file is malformed; names it and, in text, the line.
    """
    first, *others = (_read(file, name, wanted, only) for file, name in zip(files, names or files, strict=True))
    return Table(first.columns, chain(first.rows, *(other.rows for other in others)))


def _read(file: Path, name: Path, wanted: Sequence[str], only: bool) -> Table:
    try:
        with file.open("rb") as stream:
            head = stream.read(6)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check it") from None
    if not head:
        return Table(None, iter(()))
    found = format_of(name)
    if found in ("parquet", "arrow") or head.startswith(b"PAR1"):
        from iwopd.data import arrow  # pyarrow takes 0.1 s, which text does without

        return arrow.stream(file) if found == "arrow" else arrow.parquet(file, wanted, only)
    if found == "csv":
        return _csv(file, "\t" if ".tsv" in name.suffixes else _delimiter(file, wanted))
    return Table(None, _json(file, wanted, lines=found == "jsonl"))


# ---------------------------------------------------------------------------------------------- json


DECODER = json.JSONDecoder(parse_float=Written, parse_int=written_integer, parse_constant=Written)


def _json(file: Path, wanted: Sequence[str], *, lines: bool) -> Iterator[Row]:
    """Objects a line, or in one array; whichever it is, under either name."""
    stream, begun = lines_of(file), False
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        if not begun and (not lines or line.lstrip().startswith("[")):
            yield from _document("\n" * (number - 1) + "".join([line, *stream]), file, wanted)
        else:
            begun = True
            yield _object(_decoded(line, file, number), file, f"line {number}")


def _document(text: str, file: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """An array of objects, an object that holds one, or objects one after another."""
    values, place = list[Any](), _after_space(text, 0)
    while place < len(text):
        try:
            value, place = DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            said = f"{file}: line {error.lineno}, column {error.colno}: {error.msg}"
            raise DataError(f"{said}; correct the line") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: {error}; correct the file") from None
        values.append(value)
        place = _after_space(text, place)
    if len(values) == 1 and isinstance(values[0], dict) and not any(name in values[0] for name in wanted):
        held = [value for value in values[0].values() if isinstance(value, list) and value and _are_rows(value)]
        values = held if len(held) == 1 else values
    entries = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    for number, value in enumerate(entries, start=1):
        yield _object(value, file, f"entry {number}")


def _decoded(line: str, file: Path, number: int) -> object:
    try:
        return DECODER.decode(line.rstrip())
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: line {number}, column {error.colno}: {error.msg}; correct the line") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end
        raise DataError(f"{file}: line {number}: {error}; correct the line") from None


def _after_space(text: str, place: int) -> int:
    found = re.compile(r"[ \t\r\n]*").match(text, place)
    return found.end() if found else place


def _are_rows(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _object(value: object, file: Path, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{file}: {where}: a {type(value).__name__}, not an object; write {{…}} on every line")
    return value


# ---------------------------------------------------------------------------------------------- csv


def _csv(file: Path, delimiter: str) -> Table:
    """Cells as they are written, all of them text; an empty one is null."""
    records = _records(file, delimiter)
    header = [name.strip() for name in next(records, (0, []))[1]]
    check_names(header, file)
    return Table(header, _cells(records, header, file))


def _delimiter(file: Path, wanted: Sequence[str]) -> str:
    """The one with which the header has most of the columns asked for, and then most columns; a comma if in doubt."""

    def score(delimiter: str) -> tuple[int, int]:
        try:
            header = [name.strip() for name in next(_records(file, delimiter), (0, []))[1]]
        except DataError:
            return -1, 0
        return sum(name in header for name in wanted), len(header)

    return max(DELIMITERS, key=score)


def _records(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the line they end in; blank lines are passed over."""
    reader = csv.reader(_csv_lines(file), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            if record:
                yield reader.line_num, record
    except csv.Error as error:
        raise DataError(f"{file}: line {reader.line_num}: {error}; correct the line") from None


def _csv_lines(file: Path) -> Iterator[str]:
    for line in lines_of(file):
        yield from re.split(r"(?<=\r)(?!\n)", line) if "\r" in line else (line,)  # a lone \r ends a line, too


def _cells(records: Iterable[tuple[int, list[str]]], header: list[str], file: Path) -> Iterator[Row]:
    for line, record in records:
        if any(record[len(header) :]):
            raise DataError(
                f"{file}: line {line}: {len(record)} cells for {len(header)} columns; put cells that hold the "
                "separator in double quotes"
            )
        cells = [cell or None for cell in record] + [None] * (len(header) - len(record))
        yield {name: cell for name, cell in zip(header, cells, strict=False) if name or cell is not None}
