"""Model folders, tokenizers and prompts: what is read before weights load."""

from datetime import datetime
from functools import partial

from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from iwopd.config import Config
from iwopd.data import Mixture, Prompts, PromptStream, Row, drop_overlong, render, shares
from iwopd.errors import ModelError, loading_error
from iwopd.preflight.models import check_tokenizers
from iwopd.preflight.paths import scorer_sections
from iwopd.preflight.problems import data_sources
from iwopd.types import Prompt, Tokenizer


def tokenizer(key: str, folder: str, *, revision: str | None, trust_remote_code: bool) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
        ModelError: there is none, or it has no end-of-sequence token.
    """
    transformers_logging.set_verbosity_error()  # the error below says in one line what is wrong
    try:
        loaded = AutoTokenizer.from_pretrained(folder, revision=revision or "main", trust_remote_code=trust_remote_code)
    except Exception as error:  # a missing file shows as one of many types
        raise loading_error(key, folder, "its tokenizer cannot be loaded", error, "save one beside it") from error
    if loaded.eos_token_id is None:
        raise ModelError(
            f"{key}={folder}: its tokenizer has no end-of-sequence token, so responses would never end; "
            "set eos_token in tokenizer_config.json"
        )
    return loaded


def student_tokenizer(config: Config, folder: str) -> Tokenizer:
    """The student's tokenizer."""
    student = config.student
    made = tokenizer("student.path", folder, revision=student.revision, trust_remote_code=student.trust_remote_code)
    return print_date(made, config.run.date)


def print_date(tokenizer: Tokenizer, date: str | None) -> Tokenizer:
    """Have a tokenizer's chat template print `date` wherever it would print today's (its `strftime_now`)."""
    if date is not None:
        moment = datetime.fromisoformat(date)
        tokenizer.apply_chat_template = partial(tokenizer.apply_chat_template, strftime_now=moment.strftime)
    return tokenizer


def check_scorer_tokenizer(config: Config, ours: Tokenizer, folder: str, key: str = "teacher") -> None:
    """The tokenizer of the model in section `key` must be the student's. See `check_tokenizers`."""
    scorer = scorer_sections(config)[key]
    theirs = tokenizer(f"{key}.path", folder, revision=scorer.revision, trust_remote_code=scorer.trust_remote_code)
    check_tokenizers(ours, theirs, config.student.path, str(scorer.path), key)


def prompt_stream(config: Config, rows: dict[str, list[Row]], tokenizer: Tokenizer) -> tuple[Prompts, int]:
    """Batches of rendered prompts, and how many prompts were dropped as too long."""
    data, kept, dropped = config.data, dict[str, list[Prompt]](), 0
    for key, source in data_sources(data).items():
        group = key.removeprefix("data.sources.") if data.sources else None
        prompts = render(rows[key], source, tokenizer, group, key)
        kept[key], overlong = drop_overlong(prompts, data.max_prompt_tokens, data.overlong, "data")
        dropped += overlong
    if not data.sources:
        return PromptStream(kept["data"], data.batch_size, config.seed), dropped
    sizes = shares({name: source.weight for name, source in data.sources.items()}, data.batch_size)
    streams = [PromptStream(kept[f"data.sources.{name}"], size, config.seed, name) for name, size in sizes.items()]
    return Mixture(streams), dropped
