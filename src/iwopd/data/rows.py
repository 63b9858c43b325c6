"""Rows of a local file, a hub dataset or the toy task: read, filtered, and their columns checked."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iwopd import toy
from iwopd.config import SourceConfig, TrainingSourceConfig
from iwopd.data.filters import Filter
from iwopd.errors import ConfigError, DataError
from iwopd.hub import check_on_hub

Row = dict[str, Any]
Numbered = list[tuple[int, Row]]  # a row with its place in the source, counted from 1
FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json"}
COLUMNS = ("prompt_column", "id_column", "answer_column", "teacher_column")


def load_rows(source: SourceConfig, key: str, *, answers: bool) -> list[Row]:
    """The rows of a source that its filter keeps, its columns checked.

    Args:
        key: the section of the config, such as "data", for messages.
        answers: every row must have one.

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
    columns = _named(source, keeps)
    if toy.is_toy(source.path):
        found: Iterable[Row] = toy.toy_rows(f"{key}.path", source.path, source.split)
    elif Path(source.path).suffix == ".jsonl":
        found = read_json_lines(_existing(source.path, key))
    else:
        found = _load_with_datasets(source, key, columns)
    kept = _filtered(found, source, key, columns, keeps)
    for number, row in kept:
        for column in (getattr(source, name, None) for name in COLUMNS):
            problem = _cell_problem(row, column, source) if column is not None else None
            if problem:
                raise DataError(f"{source.path}: row {number}, column {column}: {problem}; mend or remove the row")
    return [row for _, row in kept]


def cell(row: Mapping[str, Any], column: str) -> Any:
    """A row's value in a column, or None; ``reward_model.ground_truth`` reaches into a column of records."""
    if column in row or "." not in column:
        return row.get(column)
    first, _, rest = column.partition(".")
    inner = row.get(first)
    return cell(inner, rest) if isinstance(inner, dict) else None


def _named(source: SourceConfig, keeps: Filter | None) -> dict[str, str]:
    """Settings that name columns, and the columns; those of the filter too."""
    named = {name: getattr(source, name, None) for name in COLUMNS}
    columns = {name: column for name, column in named.items() if column is not None}
    return columns | {f"filter={source.filter}, {column}": column for column in (keeps.columns if keeps else [])}


def _filtered(
    found: Iterable[Row], source: SourceConfig, key: str, columns: Mapping[str, str], keeps: Filter | None
) -> Numbered:
    kept: Numbered = []
    seen = 0
    for number, row in enumerate(found, start=1):
        if number == 1:
            _check_columns(list(row), row, source, key, columns)
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


def read_json_lines(path: Path) -> list[Row]:
    """One JSON object per line; blank lines are passed over.

    Raises:
        DataError: names the file, the line and what is wrong.
    """
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    rows.append(_parse_line(path, number, line.rstrip()))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: line {len(rows) + 1}: not UTF-8 ({error.reason}); convert the file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check it") from None
    return rows


def _parse_line(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {number}, column {error.colno}: {error.msg}; mend the line") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end
        raise DataError(f"{path}: line {number}: {error}; mend the line") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}: line {number}: a {type(row).__name__}, not an object; write {{…}} on every line")
    return row


def _existing(path: str, key: str) -> Path:
    file = Path(path).expanduser()
    try:
        exists = file.is_file()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}.path={path}: not a path ({getattr(error, 'strerror', None) or error})") from None
    if not exists:
        raise ConfigError(f"{key}.path={path}: there is no such file; check the path")
    return file


def _load_with_datasets(source: SourceConfig, key: str, columns: Mapping[str, str]) -> Iterable[Row]:
    """Rows as a `datasets` table, read from the disk one by one; of training problems the named columns only, since
    what else stands there (solutions, say) may be gigabytes."""
    assert source.path is not None
    suffix = Path(source.path).suffix
    local = suffix in FORMATS or len(source.path) > 200 or source.path.startswith(("/", ".", "~"))
    local = local or Path(source.path).exists()
    if local and suffix not in FORMATS:
        _existing(source.path, key)
        raise ConfigError(f"{key}.path={source.path}: not a format known here; use .jsonl, .json, .csv or .parquet")
    if local:
        file = _existing(source.path, key)
        if file.stat().st_size == 0:
            raise DataError(f"{key}.path={source.path}: no rows; name a file that has some")
    else:
        check_on_hub(f"{key}.path", source.path, "datasets", source.revision)

    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what goes wrong is told below, in one line
    try:
        if local:
            files = str(Path(source.path).expanduser())
            table: Any = load_dataset(FORMATS[suffix], data_files=files, split="train")
        else:
            table = load_dataset(source.path, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # datasets raises a dozen types, most of them its own
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        what = "the file cannot be read" if local else "neither a file here nor a dataset the hub gives"
        raise DataError(f"{key}.path={source.path}: {what}: {reason}; check path, subset and split") from error
    if len(table):
        _check_columns(table.column_names, table[0], source, key, columns)
    if not isinstance(source, TrainingSourceConfig):
        return table
    used = {column if column in table.column_names else column.split(".")[0] for column in columns.values()}
    return table.select_columns(sorted(used))


def _check_columns(
    there: Sequence[str], first: Row, source: SourceConfig, key: str, columns: Mapping[str, str]
) -> None:
    for setting, column in columns.items():
        owner = column.split(".")[0]
        if column not in there and (owner == column or not isinstance(first.get(owner), dict)):
            has = ", ".join(there) or "no columns"
            said = setting if "=" in setting else f"{setting}={column}"
            raise ConfigError(f"{key}.{said}: {source.path} has no such column; it has {has}")


def _cell_problem(row: Row, column: str, source: SourceConfig) -> str | None:
    value = cell(row, column)
    if value is None:
        if column == getattr(source, "teacher_column", None):
            return None  # the teacher of those that name none
        return "null" if column in row else "missing"
    if column != source.prompt_column:
        return "not a text or a number" if isinstance(value, (list, dict)) else None
    if isinstance(value, str):
        texts = [value]
    elif isinstance(value, list) and value and all(_is_message(message) for message in value):
        texts = [message["content"] for message in value]
    else:
        return "neither a text nor a list of messages with role and content"
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        return "not valid Unicode: half of a surrogate pair"
    return None if any(text.strip() for text in texts) else "empty"


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(part), str) for part in ("role", "content"))
