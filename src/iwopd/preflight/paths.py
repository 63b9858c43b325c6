"""The models of a run: which settings name them, and whether those can work."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from iwopd import toy
from iwopd.config import BaseConfig, Config, TeacherConfig
from iwopd.config.models import SELF
from iwopd.config.teachers import teacher_sections
from iwopd.data.hub import check_on_hub
from iwopd.preflight.models import check_model_folder
from iwopd.toy.models import check_model, ensure_models

Stage = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def model_paths(config: Config) -> dict[str, str]:
    """The models of a training run, by the setting that names them: the student, and all that score."""
    scorers = {f"{key}.path": section.path for key, section in scorer_sections(config).items()}
    return {"student.path": config.student.path} | {key: path for key, path in scorers.items() if path is not None}


def scorer_sections(config: Config) -> dict[str, TeacherConfig | BaseConfig]:
    """The sections of the models that score, by their keys: teachers, the one for problems that name none first; and
    ExOPD's base where it is needed, by default the student's files. So are those of a teacher that is the student."""
    student = config.student
    own = {"path": student.path, "revision": student.revision, "trust_remote_code": student.trust_remote_code}
    found: dict[str, TeacherConfig | BaseConfig] = {
        key: replace(each, **own) if each.path == SELF else each for key, each in teacher_sections(config).items()
    }
    if config.loss.exopd_lambda != 1:
        found["base"] = replace(config.base, **own) if config.base.path is None else config.base
    return found


def check_path(key: str, path: str, revision: str | None = None) -> None:
    """Refuse a model path that cannot work, as far as can be known without reading weights.

    Raises:
        ConfigError, ModelError: says what is wrong with it.
    """
    if toy.is_toy(path):
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
        folders |= {key: str(folder) for key, folder in ensure_models(toys, stage).items()}
    return folders
