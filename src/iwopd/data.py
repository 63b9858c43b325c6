"""Problems: rows from a file, the hub or the toy task; rendered to token ids; handed out step by step."""

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwopd import toy
from iwopd.config import SourceConfig
from iwopd.errors import ConfigError, DataError
from iwopd.hub import check_on_hub
from iwopd.seeding import derive_seed
from iwopd.types import Prompt

Row = dict[str, Any]
FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json"}


# ---------------------------------------------------------------------------------------------- rows


def load_rows(source: SourceConfig, key: str, *, answers: bool) -> list[Row]:
    """The rows of a source, its columns checked.

    Args:
        key: the section of the config, such as "data", for messages.
        answers: every row must have one.

    Raises:
        ConfigError: the path, split or a column does not exist; lists the columns there are.
        DataError: an empty or malformed file, or a row without a usable prompt or answer; names file, line and column.
    """
    if toy.is_toy(source.path):
        rows = toy.toy_rows(f"{key}.path", source.path, source.split)
    elif Path(source.path).suffix == ".jsonl":
        rows = read_json_lines(_existing(source.path, key))
    else:
        rows = _load_with_datasets(source, key)
    rows = rows[: source.limit]
    if not rows:
        raise DataError(f"{key}.path={source.path}: no rows; name a file that has some")
    _check_columns(rows, source, key, answers=answers)
    return rows


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


def _load_with_datasets(source: SourceConfig, key: str) -> list[Row]:
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
        check_on_hub(f"{key}.path", source.path, "datasets")

    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what goes wrong is told below, in one line
    try:
        if local:
            table = load_dataset(FORMATS[suffix], data_files=str(Path(source.path).expanduser()), split="train")
        else:
            table = load_dataset(source.path, source.subset, split=source.split)
        return [dict(row) for row in table]  # pyright: ignore
    except Exception as error:  # datasets raises a dozen types, most of them its own
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        what = "the file cannot be read" if local else "neither a file here nor a dataset the hub gives"
        raise DataError(f"{key}.path={source.path}: {what}: {reason}; check path, subset and split") from error


def _check_columns(rows: Sequence[Row], source: SourceConfig, key: str, *, answers: bool) -> None:
    if answers and source.answer_column is None:
        raise ConfigError(f"{key}.answer_column=null: an evaluation needs answers; name their column")
    wanted = {
        "prompt_column": source.prompt_column,
        "id_column": source.id_column,
        "answer_column": source.answer_column,
    }
    for field, column in wanted.items():
        if column is not None and column not in rows[0]:
            has = ", ".join(rows[0]) or "no columns"
            raise ConfigError(f"{key}.{field}={column}: {source.path} has no such column; it has {has}")
    for number, row in enumerate(rows, start=1):
        for field, column in wanted.items():
            problem = _cell_problem(row, column, field) if column is not None else None
            if problem:
                raise DataError(f"{source.path}: row {number}, column {column}: {problem}; mend or remove the row")


def _cell_problem(row: Row, column: str, field: str) -> str | None:
    value = row.get(column)
    if value is None:
        return "missing" if column not in row else "null"
    if field != "prompt_column":
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


# ---------------------------------------------------------------------------------------------- prompts


def render(rows: Sequence[Row], source: SourceConfig, tokenizer: Any) -> list[Prompt]:
    """Token ids of every problem, as a chat where the tokenizer has a template and as bare text where it has none.

    Raises:
        DataError: two rows share an id.
    """
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        try:
            text = _render_text(row[source.prompt_column], source, tokenizer)
        except Exception as error:  # templates are code of the model's, and raise what they like
            raise DataError(
                f"{source.path}: row {number}: the chat template refuses it: {error}; mend the row"
            ) from error
        identity = str(row[source.id_column]) if source.id_column else f"{source.split}-{number}"
        if identity in seen:
            raise DataError(f"{source.path}: row {number}, column {source.id_column}: id {identity} stands there twice")
        seen.add(identity)
        answer = row.get(source.answer_column) if source.answer_column else None
        ids = tokenizer.encode(text, add_special_tokens=tokenizer.chat_template is None)
        prompts.append(Prompt(identity, ids, text, None if answer is None else str(answer), row))
    return prompts


def _render_text(problem: Any, source: SourceConfig, tokenizer: Any) -> str:
    messages = (
        [dict(message) for message in problem] if isinstance(problem, list) else [{"role": "user", "content": problem}]
    )
    if source.suffix:
        messages[-1]["content"] += source.suffix
    if source.system:
        messages.insert(0, {"role": "system", "content": source.system})
    if tokenizer.chat_template is None:
        return "\n".join(message["content"] for message in messages)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)


def fitting(prompts: Sequence[Prompt], limit: int, overlong: str, key: str) -> tuple[list[Prompt], int]:
    """Prompts of at most `limit` tokens, and how many were dropped.

    Raises:
        DataError: one is longer and `overlong` is "error", or none is left; names it and its length.
    """
    kept = [prompt for prompt in prompts if len(prompt.ids) <= limit]
    dropped = len(prompts) - len(kept)
    if dropped and overlong == "error":
        worst = max(prompts, key=lambda prompt: len(prompt.ids))
        raise DataError(
            f"{key}.max_prompt_tokens={limit}: {dropped} of {len(prompts)} prompts are longer, prompt {worst.id} has "
            f"{len(worst.ids)} tokens; raise the limit, or drop them with {key}.overlong=drop"
        )
    if not kept:
        raise DataError(f"{key}.max_prompt_tokens={limit}: all {len(prompts)} prompts are longer; raise the limit")
    return kept, dropped


@dataclass(frozen=True)
class PromptStream:
    """Batches of prompts by step: each epoch is a new order, from the seed alone; what does not fill a batch waits for
    another epoch.

    Raises:
        ConfigError: fewer prompts than one batch.
    """

    prompts: Sequence[Prompt]
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.prompts) < self.batch_size:
            raise ConfigError(
                f"data.batch_size={self.batch_size}: the data has {len(self.prompts)} prompts, fewer than one batch; "
                f"set data.batch_size={len(self.prompts)} or less"
            )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.prompts) // self.batch_size

    def batch(self, step: int) -> list[Prompt]:
        """The prompts of step `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = list(range(len(self.prompts)))
        random.Random(derive_seed(self.seed, "order", epoch)).shuffle(order)
        return [self.prompts[index] for index in order[place * self.batch_size : (place + 1) * self.batch_size]]
