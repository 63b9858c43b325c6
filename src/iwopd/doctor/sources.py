"""The models of a run, as far as they are here: folder, config.json, tokenizer, weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwopd import assembly, toy
from iwopd.config import Config
from iwopd.doctor.findings import Section
from iwopd.preflight.models import WEIGHTS, check_whole_model
from iwopd.preflight.paths import Stage, check_path, is_local, model_folders, scorer_sections

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


@dataclass
class Source:
    """One model.

    Attributes:
        name: student, teacher, base, or a further teacher's section.
        section: its section of the config.
        folder: what transformers can load; None where it cannot be had.
        config: transformers', of the text part.
        tokenizer: None where there is none, or it cannot be loaded.
        weights: they are there.
    """

    name: str
    section: Any
    folder: str | None = None
    config: Any = None
    tokenizer: Any = None
    weights: bool = False

    @property
    def key(self) -> str:
        """The setting that names it."""
        return f"{self.name}.path"


def model_sources(config: Config, section: Section, stage: Stage) -> list[Source]:
    """Student, teacher, further teachers, and ExOPD's base; what is missing is said."""
    found = [Source("student", config.student)]
    found += [Source(key, scorer) for key, scorer in scorer_sections(config).items()]
    for source in found:
        with section.guarded():
            _find(source, section, stage)
    return found


def _find(source: Source, section: Section, stage: Stage) -> None:
    path = source.section.path
    folder = Path(path)
    bare = _has_config_alone(path, folder)
    if bare:
        check_whole_model(source.key, folder)
    else:
        check_path(source.key, path, source.section.revision)
    source.folder = model_folders({source.key: path}, stage)[source.key]
    source.config = assembly.model_config(source.key, source.section, source.folder)
    source.weights = not bare
    layers = getattr(source.config, "num_hidden_layers", "unknown")
    said = f"{source.key}={path}: {source.config.model_type}, {layers} layers"
    if bare:
        section.warn(f"{said}; its config.json alone is here: enough for a plan, but training needs its weights")
    else:
        section.ok(said)
    local = toy.is_toy(path) or is_local(path)
    if bare and local and not any((folder / name).is_file() for name in TOKENIZERS):
        section.warn(
            f"{source.key}={path}: has no tokenizer, so tokenizers and prompts are not checked; save one there"
        )
        return
    source.tokenizer = assembly.tokenizer(
        source.key,
        source.folder,
        revision=source.section.revision,
        trust_remote_code=source.section.trust_remote_code,
    )


def _has_config_alone(path: str, folder: Path) -> bool:
    if toy.is_toy(path) or not is_local(path):
        return False
    try:
        return (folder / "config.json").is_file() and not any((folder / name).is_file() for name in WEIGHTS)
    except (OSError, ValueError):  # not a path: its own check reports it
        return False
