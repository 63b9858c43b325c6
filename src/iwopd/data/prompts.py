"""From rows to prompts: template, system message, chat template, token ids; and which of them are too long."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from iwopd.config import SourceConfig
from iwopd.config.template import PROMPT, fill
from iwopd.data.messages import Message, as_messages
from iwopd.data.rows import Row, get_column
from iwopd.data.values import is_missing, text_of
from iwopd.errors import DataError, first_line
from iwopd.types import Prompt, Tokenizer

log = logging.getLogger(__name__)

PROBLEM = "{prompt}"  # where the problem goes in a template; replaced as it is, for LaTeX is full of braces


@dataclass(frozen=True)
class TeacherTemplate:
    """The setting `key`, and the text it has: what a teacher is asked instead of the student."""

    key: str
    text: str


def render(
    rows: Sequence[Row],
    source: SourceConfig,
    tokenizer: Tokenizer,
    group: str | None = None,
    key: str = "data",
    templates: Mapping[str | None, TeacherTemplate] = MappingProxyType({}),
) -> list[Prompt]:
    """Token ids of every problem, as a chat where the tokenizer has a template and as bare text where it has none.

    Args:
        group: of the problems, where there are several sources; a prefix of their ids, which it keeps unique.
        key: the section of the config that `source` is, for messages.
        templates: of the teachers that read prompts of their own, by name; None for problems that name no teacher.
            Rows have what they need, see `check_texts`.

    Raises:
        DataError: two rows share an id, or the chat template refuses one.
    """
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        said = f"{source.path}: row {number}"
        problem = get_column(row, source.prompt_column)
        messages = _messages(problem, source, said, key)
        text = _render_text(messages, problem, source, tokenizer, said, key)
        name = text_of(get_column(row, source.id_column)) if source.id_column else f"{source.split}-{number}"
        identity = f"{group}/{name}" if group else name
        if identity in seen:
            raise DataError(
                f"{said}, column {source.id_column}: duplicate id {name}, as in row {seen[identity]}; make ids unique, "
                f"or number the rows with {key}.id_column=null"
            )
        seen[identity] = number
        answer = get_column(row, source.answer_column) if source.answer_column else None
        reference = None if answer is None else text_of(answer)
        teacher = _teacher(row, source)
        taught = None
        if template := templates.get(teacher):
            messages = _for_teacher(messages, template, row, said, source)
            taught = _encode(_render_text(messages, problem, source, tokenizer, said, template.key), tokenizer)
        prompts.append(Prompt(identity, _encode(text, tokenizer), text, reference, row, teacher, taught))
    remark = answers_within(rows, source)
    if remark:
        log.warning("%s", remark)
    return prompts


def answers_within(rows: Sequence[Row], source: SourceConfig) -> str | None:
    """What to say of problems that end with the assistant's message, which may be the answer; None where none does."""
    last = [as_messages(get_column(row, source.prompt_column))[-1]["role"] for row in rows]
    count = last.count("assistant")
    if not count:
        return None
    return (
        f"{source.path}: {count} of {len(rows)} prompts end with a message of the assistant's, after which the student "
        "is asked for another; if it is the answer, remove it from the rows"
    )


def _teacher(row: Row, source: SourceConfig) -> str | None:
    column = getattr(source, "teacher_column", None)
    named = get_column(row, column) if column else None
    return getattr(source, "teacher", None) if is_missing(named) else text_of(named)


def _for_teacher(
    messages: list[Message], template: TeacherTemplate, row: Row, said: str, source: SourceConfig
) -> list[Message]:
    *before, asked = messages
    if asked["role"] != "user":
        raise DataError(
            f"{said}, column {source.prompt_column}: its last message is of the role {asked['role']}, and "
            f"{template.key} belongs into a user's turn; remove that message if it is the answer"
        )

    def value(name: str) -> str:
        return asked["content"] if name == PROMPT else text_of(get_column(row, name))

    return [*before, {**asked, "content": fill(template.text, value)}]


def _messages(problem: object, source: SourceConfig, said: str, key: str) -> list[Message]:
    """What the student is asked."""
    messages = as_messages(problem)
    if source.template or source.suffix:
        asked = messages[-1]
        if asked["role"] != "user":
            setting = "suffix" if source.suffix else "template"
            raise DataError(
                f"{said}, column {source.prompt_column}: its last message is of the role {asked['role']}, and "
                f"{key}.{setting} belongs into a user's turn; remove that message if it is the answer, or set "
                f"{key}.{setting}=''"
            )
        asked["content"] = (source.template or PROBLEM).replace(PROBLEM, asked["content"]) + (source.suffix or "")
    if source.system:
        messages.insert(0, {"role": "system", "content": source.system})
    return messages


def _render_text(
    messages: list[Message], problem: object, source: SourceConfig, tokenizer: Tokenizer, said: str, key: str
) -> str:
    try:
        text = _apply(messages, source, tokenizer)
    except Exception as error:  # templates are code of the model's, and raise what they like
        raise DataError(_refusal(error, messages, problem, source, tokenizer, said, key)) from error
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(
            f"{said}: its prompt is not valid Unicode: half of a surrogate pair; correct the row, or what {key} puts "
            "around it"
        )
    return text


def _apply(messages: list[Message], source: SourceConfig, tokenizer: Tokenizer) -> str:
    if tokenizer.chat_template is None:
        return "\n".join(message["content"] for message in messages)
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=bool(source.enable_thinking)
    )


def _refusal(
    error: Exception,
    messages: list[Message],
    problem: object,
    source: SourceConfig,
    tokenizer: Tokenizer,
    said: str,
    key: str,
) -> str:
    """Why a chat template refuses messages, as far as can be found out by trying others."""
    reason = first_line(error)

    def bears(others: list[Message]) -> bool:
        try:
            return bool(_apply(others, source, tokenizer)) and others != messages
        except Exception:
            return False

    if bears([message for message in messages if message["role"] != "system"]):
        if source.system and bears(messages[1:]):
            return (
                f"{key}.system: the model's chat template refuses a system message ({reason}); put the text into "
                f"{key}.template, as 'TEXT {PROBLEM}'"
            )
        return (
            f"{said}, column {source.prompt_column}: the model's chat template refuses its system message ({reason}); "
            "put that text into the user's message"
        )
    if isinstance(problem, str):
        return f"{said}: the model's chat template fails on a plain question ({reason}); correct the template"
    roles = ", ".join(message["role"] for message in messages)
    return (
        f"{said}, column {source.prompt_column}: the model's chat template refuses its messages, of the roles {roles} "
        f"({reason}); correct or remove the row"
    )


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids. Of a text without chat template, with what the tokenizer puts before it (BOS), but not with what it
    puts after it: after an EOS the prompt would be over, and a response would begin another text."""
    bare = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.chat_template is not None:
        return bare
    ids = tokenizer.encode(text, add_special_tokens=True)
    for start in range(len(ids) - len(bare) + 1):
        if ids[start : start + len(bare)] == bare:
            return ids[: start + len(bare)]
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None, *bare[-1:]}
    while ids and ids[-1] in ends:
        ids.pop()
    return ids


def drop_overlong(prompts: Sequence[Prompt], limit: int, overlong: str, key: str) -> tuple[list[Prompt], int]:
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
