"""Rows of local files, a hub dataset or the toy task: read, filtered, and their columns checked."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from iwopd import toy
from iwopd.config import SourceConfig, TrainingSourceConfig
from iwopd.data import files, hub_datasets, messages, readers
from iwopd.data.filters import Filter
from iwopd.data.table import Row, Table
from iwopd.data.values import is_missing
from iwopd.errors import ConfigError, DataError

Numbered = list[tuple[int, Row]]  # a row with its place in the source, counted from 1
COLUMNS = ("prompt_column", "id_column", "answer_column", "teacher_column")
CHATS = ("messages", "conversations", "conversation", "chat")  # what datasets of chats call their column


def load_rows(
    source: SourceConfig,
    key: str,
    *,
    answers: bool,
    required: Mapping[str, str] = MappingProxyType({}),
    wanted: Sequence[str] = (),
    whole: bool = False,
) -> list[Row]:
    """The rows of a source that its filter keeps, its columns checked.

    Args:
        key: the section of the config, such as "data", for messages.
        answers: every row must have one.
        required: further columns that every row must have, each a text or a number, by what names them, for messages.
        wanted: further columns that some rows may need.
        whole: keep columns that nothing names, also of training problems.

    Raises:
        ConfigError: the path, split or a column does not exist (lists the columns there are), or the filter is no
            condition.
        DataError: an empty or malformed file, a filter that leaves nothing, or a row without a usable prompt or answer;
            names file, line and column.
    """
    if source.path is None:
        raise ConfigError(f"{key}.path=null: no data; name a file or a hub dataset")
    if answers and source.answer_column is None:
        raise ConfigError(f"{key}.answer_column=null: an evaluation needs answers; name their column")
    keeps = None if source.filter is None else Filter(f"{key}.filter", source.filter)
    columns = {**_named(source, key, keeps), **required}
    kept = _filtered(_table(source, key, [*columns.values(), *wanted], whole), source, key, columns, keeps)
    for number, row in kept:
        for column in (getattr(source, name, None) for name in COLUMNS):
            problem = _cell_problem(row, column, source) if column is not None else None
            if problem:
                raise DataError(f"{source.path}: row {number}, column {column}: {problem}; correct or remove the row")
        check_texts(row, number, source, required)
    return [row for _, row in kept]


def _table(source: SourceConfig, key: str, columns: Sequence[str], whole: bool) -> Table:
    """Of training problems the named columns only, where that saves reading: other columns (solutions, say)
    may be gigabytes."""
    assert source.path is not None
    if toy.is_toy(source.path):
        return Table(None, iter(toy.toy_rows(f"{key}.path", source.path, source.split)))
    wanted = [*columns, *(column.split(".")[0] for column in columns)]
    only = isinstance(source, TrainingSourceConfig) and not whole
    if files.is_local(source.path):
        return readers.read(files.find(source.path, key, source.split), wanted, only=only)
    return hub_datasets.read(source, key, wanted, only=only)


def get_column(row: Mapping[str, Any], column: str) -> object:
    """A row's value in a column, or None; ``reward_model.ground_truth`` reaches into a column of records."""
    if column in row or "." not in column:
        return row.get(column)
    first, _, rest = column.partition(".")
    inner = row.get(first)
    return get_column(inner, rest) if isinstance(inner, dict) else None


def _named(source: SourceConfig, key: str, keeps: Filter | None) -> dict[str, str]:
    """Settings that name columns, as they are written, and the columns; those of the filter too."""
    named = {name: getattr(source, name, None) for name in COLUMNS}
    columns = {f"{key}.{name}={column}": column for name, column in named.items() if column is not None}
    filtered = keeps.columns if keeps else []
    return columns | {f"{key}.filter={source.filter}, {column}": column for column in filtered}


def _filtered(
    found: Table, source: SourceConfig, key: str, columns: Mapping[str, str], keeps: Filter | None
) -> Numbered:
    kept: Numbered = []
    seen = 0
    if found.columns:
        _check_columns(found.columns, None, source, key, columns)
    for number, row in enumerate(found.rows, start=1):
        if number == 1:
            _check_columns(found.columns or list(row), row, source, key, columns)
        seen = number
        if keeps is None or keeps(row, number):
            kept.append((number, row))
        if len(kept) == source.limit:
            break
    if not seen:
        raise DataError(f"{key}.path={source.path}: no rows; name a file that has some")
    if not kept:
        raise DataError(f"{key}.filter={source.filter}: keeps none of the {seen} rows of {source.path}; loosen it")
    return kept


def _check_columns(
    there: Sequence[str], first: Row | None, source: SourceConfig, key: str, columns: Mapping[str, str]
) -> None:
    """Args:
    first: the first row, if it is known: a record of it shows whether ``a.b`` can be there.
    """
    for said, column in columns.items():
        owner = column.split(".")[0]
        if column in there:
            continue
        if owner != column and owner in there and (first is None or isinstance(first.get(owner), dict | None)):
            continue
        has = ", ".join(there) or "no columns"
        prompts = said.startswith(f"{key}.prompt_column=")
        chat = next((name for name in CHATS if name in there), None) if prompts else None
        hint = f"; for its chats set {key}.prompt_column={chat}" if chat else ""
        raise ConfigError(f"{said}: {source.path} has no such column; it has {has}{hint}")


def check_texts(row: Row, number: int, source: SourceConfig, required: Mapping[str, str]) -> None:
    """Refuse a row without the columns that something else needs as text.

    Args:
        number: of the row, counted from 1, for messages.
        required: columns, by what names them.

    Raises:
        DataError: says which it has not.
    """
    for said, column in required.items():
        if problem := text_problem(row, column):
            raise DataError(
                f"{source.path}: row {number}, column {column}: {problem}, and {said} needs it; correct or remove it"
            )


def text_problem(row: Row, column: str) -> str | None:
    """Why the cell is no text, nor what can be written as one; None where it is."""
    value = get_column(row, column)
    if is_missing(value):
        return ("null" if value is None else "NaN") if column in row else "missing"
    if isinstance(value, (list, dict, bytes)):
        return f"not a text or a number, but a {type(value).__name__}"
    return _unicode_problem(str(value))


def _cell_problem(row: Row, column: str, source: SourceConfig) -> str | None:
    value = get_column(row, column)
    if is_missing(value) and column == getattr(source, "teacher_column", None):
        return None  # the teacher of those that name none
    if is_missing(value) or column != source.prompt_column:
        return text_problem(row, column)
    try:
        texts = [message["content"] for message in messages.as_messages(value)]
    except ValueError as error:
        return str(error)
    return _unicode_problem(*texts) or (None if any(text.strip() for text in texts) else "empty")


def _unicode_problem(*texts: str) -> str | None:
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        return "not valid Unicode: half of a surrogate pair"
    return None
