"""Model folders, tokenizers, rows and prompts: what is read and checked before weights load."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iwopd import toy
from iwopd.build.evaluation import benchmark_rows
from iwopd.build.vllm import check_vllm
from iwopd.config import Config, WandbTracking
from iwopd.data import PromptStream, Row, fitting, load_rows, render
from iwopd.errors import ConfigError, ModelError
from iwopd.hub import check_on_hub
from iwopd.preflight import check_model_folder, check_tokenizers

Stage = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Checked:
    """What was read before anything heavy loaded: rows of the data and of the benchmarks."""

    rows: list[Row]
    benchmarks: dict[str, list[Row]]


def check_inputs(config: Config) -> Checked:
    """Every check of a training run that needs neither torch nor a model: paths, data files, graders.

    Raises:
        IwopdError: the first that fails.
    """
    if isinstance(config.tracking, WandbTracking) and find_spec("wandb") is None:
        raise ConfigError("tracking=wandb: wandb is not installed; pip install 'iwopd[wandb]'")
    check_vllm(config)
    check_path("student.path", config.student.path)
    check_path("teacher.path", config.teacher.path)
    return Checked(training_rows(config), benchmark_rows(config.eval))


def check_path(key: str, path: str) -> None:
    """Refuse a model path that cannot work, as far as can be told without reading weights.

    Raises:
        ConfigError, ModelError: says what is wrong with it.
    """
    if toy.is_toy(path):
        from iwopd.toy.models import check_model

        check_model(key, path)
    elif is_local(path):
        check_model_folder(key, Path(path).expanduser())
    else:
        check_on_hub(key, path)


def is_local(path: str) -> bool:
    """True for a folder on this machine, or what can only be meant as one; else it is a hub name."""
    if path.startswith(("/", ".", "~")) or not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", path):
        return True
    return Path(path).exists()


def model_folders(paths: Mapping[str, str], stage: Stage) -> dict[str, str]:
    """What transformers can load, by setting: toy models are made first, hub names stay as they are."""
    folders = {key: str(Path(path).expanduser()) if is_local(path) else path for key, path in paths.items()}
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
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"{key}={folder}: its tokenizer cannot be loaded: {reason}; save one beside it") from error
    if loaded.eos_token_id is None:
        raise ModelError(
            f"{key}={folder}: its tokenizer has no end-of-sequence token, so responses would never end; "
            "set eos_token in tokenizer_config.json"
        )
    return loaded


def student_tokenizer(config: Config, folder: str) -> Any:
    """The student's tokenizer."""
    student = config.student
    return tokenizer("student.path", folder, revision=student.revision, trust_remote_code=student.trust_remote_code)


def check_teacher_tokenizer(config: Config, ours: Any, folder: str) -> None:
    """The teacher's must be the same. See `check_tokenizers`."""
    teacher = config.teacher
    theirs = tokenizer("teacher.path", folder, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code)
    check_tokenizers(ours, theirs, config.student.path, teacher.path)


def training_rows(config: Config) -> list[Row]:
    """The rows of `data`, columns checked."""
    return load_rows(config.data, "data", answers=False)


def prompt_stream(config: Config, rows: list[Row], tokenizer: Any) -> tuple[PromptStream, int]:
    """Batches of rendered prompts, and how many prompts were dropped as too long."""
    prompts = render(rows, config.data, tokenizer)
    kept, dropped = fitting(prompts, config.data.max_prompt_tokens, config.data.overlong, "data")
    return PromptStream(kept, config.data.batch_size, config.seed), dropped
