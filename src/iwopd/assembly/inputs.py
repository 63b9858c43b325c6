"""Model folders, tokenizers, rows and prompts: what is read and checked before weights load."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iwopd import toy
from iwopd.assembly.evaluation import benchmark_rows
from iwopd.assembly.vllm import check_vllm
from iwopd.config import BaseConfig, Config, DataConfig, TeacherConfig, TrainingSourceConfig, WandbTracking
from iwopd.data import Mixture, Prompts, PromptStream, Row, cell, fitting, load_rows, render, shares, text_of
from iwopd.errors import ConfigError, DataError, ModelError, loading_error
from iwopd.preflight.hub import check_on_hub
from iwopd.preflight.models import check_model_folder, check_tokenizers
from iwopd.types import Prompt

Stage = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Checked:
    """What was read before anything heavy loaded: rows of the data, by source ("data" if there is one only), and of the
    benchmarks."""

    rows: dict[str, list[Row]]
    benchmarks: dict[str, list[Row]]


def check_inputs(config: Config) -> Checked:
    """Every check of a training run that needs neither torch nor a model: paths, data files, graders.

    Raises:
        IwopdError: the first that fails.
    """
    if isinstance(config.tracking, WandbTracking) and find_spec("wandb") is None:
        raise ConfigError("tracking=wandb: wandb is not installed; pip install 'iwopd[wandb]'")
    check_vllm(config)
    check_path("student.path", config.student.path, config.student.revision)
    for key, section in scorer_sections(config).items():
        check_path(f"{key}.path", str(section.path), section.revision)
    return Checked(training_rows(config), benchmark_rows(config.eval) if config.eval.benchmarks else {})


def model_paths(config: Config) -> dict[str, str]:
    """The models of a training run, by the setting that names them: the student, and all that score."""
    scorers = {f"{key}.path": section.path for key, section in scorer_sections(config).items()}
    return {"student.path": config.student.path} | {key: path for key, path in scorers.items() if path is not None}


def scorer_sections(config: Config) -> dict[str, TeacherConfig | BaseConfig]:
    """The sections of the models that score, by their keys: teachers, the one for problems that name none first; and
    ExOPD's base where it is needed, by default the student's files."""
    found: dict[str, TeacherConfig | BaseConfig] = {"teacher": config.teacher}
    found |= {f"teachers.{name}": each for name, each in config.teachers.items()}
    if config.loss.exopd_lambda != 1:
        base, student = config.base, config.student
        own = {"path": student.path, "revision": student.revision, "trust_remote_code": student.trust_remote_code}
        found["base"] = replace(base, **own) if base.path is None else base
    return found


def check_path(key: str, path: str, revision: str | None = None) -> None:
    """Refuse a model path that cannot work, as far as can be told without reading weights.

    Raises:
        ConfigError, ModelError: says what is wrong with it.
    """
    if toy.is_toy(path):
        from iwopd.toy.models import check_model

        check_model(key, path)
    elif is_local(path):
        check_model_folder(key, Path(path))
    else:
        check_on_hub(key, path, revision=revision)


def is_local(path: str) -> bool:
    """True for a folder on this machine, or what can only be meant as one; else it is a hub name."""
    if path.startswith(("/", ".", "~")) or not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", path):
        return True
    return Path(path).exists()


def model_folders(paths: Mapping[str, str], stage: Stage) -> dict[str, str]:
    """What transformers can load, by setting: toy models are made first, hub names stay as they are."""
    folders = dict(paths)
    toys = {key: path for key, path in paths.items() if toy.is_toy(path)}
    if toys:
        from iwopd.toy.models import ensure_models

        folders |= {key: str(folder) for key, folder in ensure_models(toys, stage).items()}
    return folders


def tokenizer(key: str, folder: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer of a model.

    Raises:
        ModelError: there is none, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # what is wrong with a tokenizer is told below, in one line
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


def student_tokenizer(config: Config, folder: str) -> Any:
    """The student's tokenizer."""
    student = config.student
    made = tokenizer("student.path", folder, revision=student.revision, trust_remote_code=student.trust_remote_code)
    return print_date(made, config.run.date)


def print_date(tokenizer: Any, date: str | None) -> Any:
    """Have a tokenizer's chat template print `date` wherever it would print today's (its `strftime_now`)."""
    if date is not None:
        moment = datetime.fromisoformat(date)
        tokenizer.apply_chat_template = partial(tokenizer.apply_chat_template, strftime_now=moment.strftime)
    return tokenizer


def check_scorer_tokenizer(config: Config, ours: Any, folder: str, key: str = "teacher") -> None:
    """The tokenizer of the model in section `key` must be the student's. See `check_tokenizers`."""
    scorer = scorer_sections(config)[key]
    theirs = tokenizer(f"{key}.path", folder, revision=scorer.revision, trust_remote_code=scorer.trust_remote_code)
    check_tokenizers(ours, theirs, config.student.path, str(scorer.path), key)


def data_sources(data: DataConfig) -> dict[str, TrainingSourceConfig]:
    """The sources of the training problems by their keys; what one of a mixture leaves open is as in `data`."""
    if not data.sources:
        return {"data": data}
    return {
        f"data.sources.{name}": replace(
            source,
            **{part: getattr(data, part) for part in RENDERING if getattr(source, part) is None},
        )
        for name, source in data.sources.items()
    }


RENDERING = ("template", "suffix", "system", "enable_thinking")


def training_rows(config: Config) -> dict[str, list[Row]]:
    """The rows of every source of `data`, columns checked, and the teachers they name.

    Raises:
        DataError: a row names a teacher that is not there.
    """
    sources = data_sources(config.data)
    rows = {key: load_rows(source, key, answers=False) for key, source in sources.items()}
    known = [config.teacher.name, *config.teachers]
    for key, source in sources.items():
        for number, row in enumerate(rows[key] if source.teacher_column else [], start=1):
            named = cell(row, source.teacher_column or "")
            if named is not None and text_of(named) not in known:
                raise DataError(
                    f"{source.path}: row {number}, column {source.teacher_column}: {named} is no teacher; there are "
                    f"{', '.join(known)}: add teachers.{named}.path=…, or correct the row"
                )
    return rows


def prompt_stream(config: Config, rows: dict[str, list[Row]], tokenizer: Any) -> tuple[Prompts, int]:
    """Batches of rendered prompts, and how many prompts were dropped as too long."""
    data, kept, dropped = config.data, dict[str, list[Prompt]](), 0
    for key, source in data_sources(data).items():
        group = key.removeprefix("data.sources.") if data.sources else None
        prompts = render(rows[key], source, tokenizer, group, key)
        kept[key], overlong = fitting(prompts, data.max_prompt_tokens, data.overlong, "data")
        dropped += overlong
    if not data.sources:
        return PromptStream(kept["data"], data.batch_size, config.seed), dropped
    sizes = shares({name: source.weight for name, source in data.sources.items()}, data.batch_size)
    streams = [PromptStream(kept[f"data.sources.{name}"], size, config.seed, name) for name, size in sizes.items()]
    return Mixture(streams), dropped
