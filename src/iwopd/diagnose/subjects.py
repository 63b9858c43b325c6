"""Which students are diagnosed: the untrained one, or those a run has kept."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from iwopd.config import Config, HfRolloutConfig
from iwopd.errors import ConfigError
from iwopd.runs.folder import damage

# What must be as it was in the run, for its checkpoints to mean what the report says.
OF_THE_RUN = ("student.path", "student.revision", "student.lora.rank", "teacher.path", "teacher.revision")


@dataclass(frozen=True)
class Subject:
    """One student: the untrained one, or a checkpoint."""

    name: str
    step: int
    checkpoint: Path | None = None


def subjects(config: Config) -> tuple[list[Subject], str | None]:
    """The students to diagnose, and what should be said about a run that kept few."""
    first = Subject("before training", 0)
    if config.diagnose.run is None:
        return [first], None
    path = Path(config.diagnose.run)
    _check_run(config, path)
    if config.student.lora.rank and not isinstance(config.rollout, HfRolloutConfig):
        raise ConfigError(
            "student.lora.rank: the adapters of checkpoints are sampled from with rollout=hf only; use it"
        )
    whole = [folder for folder in sorted((path / "checkpoints").glob("step-*")) if damage(folder) is None]
    if not whole:
        raise ConfigError(f"diagnose.run={path}: has no whole checkpoint; train it further, or name another run")
    steps = [(int(folder.name.removeprefix("step-")), folder) for folder in whole]
    subjects = [first, *(Subject(f"step {step}", step, folder) for step, folder in steps if step)]
    note = None
    if len(whole) < 3:
        listed = ", ".join(str(step) for step, _ in steps)
        note = f"{path} keeps {len(whole)} checkpoints only (step {listed}); train with run.keep=0 to keep them all"
    return subjects, note


def _check_run(config: Config, path: Path) -> None:
    """The run must be a training run of this student and this teacher.

    Raises:
        ConfigError: it is not; says what to set.
    """
    try:
        saved = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        verb = saved["verb"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        raise ConfigError(f"diagnose.run={path}: holds no run; name the folder of one, e.g. runs/NAME") from None
    if verb != "train":
        raise ConfigError(f"diagnose.run={path}: is a run of iwopd {verb}; name a training run")
    current = asdict(config)
    differing = [
        f"{key}={'null' if there is None else there}"
        for key in OF_THE_RUN
        if (there := _lookup(saved, key)) != _lookup(current, key)
    ]
    if differing:
        raise ConfigError(f"diagnose.run={path}: was trained with other settings; add {' '.join(differing)}")


def _lookup(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
