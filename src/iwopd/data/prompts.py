"""From rows to prompts: template, system message, chat template, token ids; and which of them are too long."""

from collections.abc import Sequence
from typing import Any

from iwopd.config import SourceConfig
from iwopd.data.rows import Row, cell
from iwopd.errors import DataError
from iwopd.types import Prompt


def render(rows: Sequence[Row], source: SourceConfig, tokenizer: Any, group: str | None = None) -> list[Prompt]:
    """Token ids of every problem, as a chat where the tokenizer has a template and as bare text where it has none.

    Args:
        group: of the problems, where there are several sources; stands before their ids, which it keeps unique.

    Raises:
        DataError: two rows share an id, or the chat template refuses one.
    """
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        try:
            text = _render_text(cell(row, source.prompt_column), source, tokenizer)
        except Exception as error:  # templates are code of the model's, and raise what they like
            raise DataError(
                f"{source.path}: row {number}: the chat template refuses it: {error}; mend the row"
            ) from error
        name = str(cell(row, source.id_column)) if source.id_column else f"{source.split}-{number}"
        identity = f"{group}/{name}" if group else name
        if identity in seen:
            raise DataError(f"{source.path}: row {number}, column {source.id_column}: id {name} stands there twice")
        seen.add(identity)
        answer = cell(row, source.answer_column) if source.answer_column else None
        ids = tokenizer.encode(text, add_special_tokens=tokenizer.chat_template is None)
        prompts.append(Prompt(identity, ids, text, None if answer is None else str(answer), row, _teacher(row, source)))
    return prompts


def _teacher(row: Row, source: SourceConfig) -> str | None:
    column = getattr(source, "teacher_column", None)
    named = cell(row, column) if column else None
    return getattr(source, "teacher", None) if named is None else str(named)


def _render_text(problem: Any, source: SourceConfig, tokenizer: Any) -> str:
    messages = (
        [dict(message) for message in problem] if isinstance(problem, list) else [{"role": "user", "content": problem}]
    )
    asked = messages[-1]
    asked["content"] = (source.template or PROBLEM).replace(PROBLEM, asked["content"]) + (source.suffix or "")
    if source.system:
        messages.insert(0, {"role": "system", "content": source.system})
    if tokenizer.chat_template is None:
        return "\n".join(message["content"] for message in messages)
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=bool(source.enable_thinking)
    )


PROBLEM = "{prompt}"  # where the problem stands in a template; replaced as it is, for LaTeX is full of braces


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
