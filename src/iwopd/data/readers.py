"""Each format as rows, its cells as the file has them: text stays text, and numbers keep their spelling."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from iwopd.data.files import format_of, lines_of
from iwopd.data.values import Written, written_integer
from iwopd.errors import DataError

Row = dict[str, Any]
DELIMITERS = ",;\t|"
BATCH = 1024  # rows of a table that are made into Python objects at a time

csv.field_size_limit(2**31 - 1)  # a solution may be longer than the 128 KiB that Python allows


@dataclass(frozen=True)
class Table:
    """Rows, read as they are asked for.

    Attributes:
        columns: their names, where the format tells them beforehand; else the first row does.
    """

    columns: list[str] | None
    rows: Iterator[Row]


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
    if found == "parquet" or head.startswith(b"PAR1"):
        return _parquet(file, wanted, only)
    if found == "arrow":
        return _arrow(file)
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


def _decoded(line: str, file: Path, number: int) -> Any:
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


def _object(value: Any, file: Path, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{file}: {where}: a {type(value).__name__}, not an object; write {{…}} on every line")
    return value


# ---------------------------------------------------------------------------------------------- csv


def _csv(file: Path, delimiter: str) -> Table:
    """Cells as they are written, all of them text; an empty one is null."""
    records = _records(file, delimiter)
    header = [name.strip() for name in next(records, (0, []))[1]]
    _check_names(header, file)
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


def _check_names(names: Sequence[str], file: Path) -> None:
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        raise DataError(f"{file}: several columns are named {twice}; rename all but one")


# ---------------------------------------------------------------------------------------------- tables


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{file}: the file cannot be read: {reason}; write it again, or check what it is") from error


def _parquet(file: Path, wanted: Sequence[str], only: bool) -> Table:
    from pyarrow import parquet

    with _readable(file):
        table = parquet.ParquetFile(file)
    names = table.schema_arrow.names
    _check_names(names, file)
    chosen = [name for name in names if name in wanted]
    return Table(names, _rows(file, lambda: table.iter_batches(BATCH, columns=chosen if only else None)))


def _arrow(file: Path) -> Table:
    """As `datasets` saves a dataset: a stream of batches; or the file format."""
    import pyarrow
    from pyarrow import ipc

    with _readable(file):
        source = pyarrow.memory_map(str(file))
        try:
            schema, batches = (opened := ipc.open_stream(source)).schema, lambda: opened
        except pyarrow.ArrowInvalid:
            source.seek(0)
            whole = ipc.open_file(source)
            schema, batches = whole.schema, lambda: map(whole.get_batch, range(whole.num_record_batches))
    _check_names(schema.names, file)
    return Table(schema.names, _rows(file, batches))


def _rows(file: Path, batches: Callable[[], Iterable[Any]]) -> Iterator[Row]:
    with _readable(file):
        for batch in batches():
            yield from plain_rows(batch)


def plain_rows(batch: Any) -> list[Row]:
    """Rows of a batch of pyarrow's as Python objects: bytes that are text as text, short floats by their own digits."""
    import pyarrow

    columns = [_plain(column) for column in batch.columns]
    return pyarrow.Table.from_arrays(columns, names=batch.schema.names).to_pylist(maps_as_pydicts="lossy")


def _plain(column: Any) -> Any:
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if types.is_float16(kind) or types.is_float32(kind):
        return column.cast(pyarrow.string()).cast(pyarrow.float64())  # 0.1 and not 0.10000000149011612
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        try:
            return column.cast(pyarrow.large_binary()).cast(pyarrow.large_string())
        except pyarrow.ArrowInvalid:  # an image, say
            return column
    return column
