"""Tables of parquet and arrow files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, types
from pyarrow.parquet import ParquetFile

from iwopd.data.table import Row, Table, check_names
from iwopd.errors import DataError, first_line

BATCH = 1024  # rows of a table that are made into Python objects at a time


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(
            f"{file}: the file cannot be read: {first_line(error)}; write it again, or check what it is"
        ) from error


def parquet(file: Path, wanted: Sequence[str], only: bool) -> Table:
    """The rows of a parquet file; `only` those columns that are wanted."""
    with _readable(file):
        table = ParquetFile(file)
    names = table.schema_arrow.names
    check_names(names, file)
    chosen = [name for name in names if name in wanted]
    return Table(names, _rows(file, lambda: table.iter_batches(BATCH, columns=chosen if only else None)))


def stream(file: Path) -> Table:
    """As `datasets` saves a dataset: a stream of batches; or the file format."""
    with _readable(file):
        source = pyarrow.memory_map(str(file))
        try:
            schema, batches = (opened := ipc.open_stream(source)).schema, lambda: opened
        except pyarrow.ArrowInvalid:
            source.seek(0)
            whole = ipc.open_file(source)
            schema, batches = whole.schema, lambda: map(whole.get_batch, range(whole.num_record_batches))
    check_names(schema.names, file)
    return Table(schema.names, _rows(file, batches))


def _rows(file: Path, batches: Callable[[], Iterable[Any]]) -> Iterator[Row]:
    with _readable(file):
        for batch in batches():
            yield from _plain_rows(batch)


def _plain_rows(batch: pyarrow.RecordBatch) -> list[Row]:
    """Rows of a batch of pyarrow's as Python objects: bytes that are text as text, short floats by their own digits."""
    columns = [_plain(column) for column in batch.columns]
    return pyarrow.Table.from_arrays(columns, names=batch.schema.names).to_pylist(maps_as_pydicts="lossy")


def _plain(column: pyarrow.Array) -> pyarrow.Array:
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
