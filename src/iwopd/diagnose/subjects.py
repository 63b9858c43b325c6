"""Which students are diagnosed: the untrained one, or those a run has kept."""

from dataclasses import dataclass
from pathlib import Path

from iwopd.config import Config, HfRolloutConfig
from iwopd.config.names import checkpoint_step
from iwopd.config.stored import stored
from iwopd.errors import ConfigError, RunFolderError
from iwopd.runs.checkpoints import Checkpoints
from iwopd.runs.saved_config import saved_config

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
    whole = Checkpoints(path).whole()
    if not whole:
        raise ConfigError(f"diagnose.run={path}: has no whole checkpoint; train it further, or name another run")
    steps = [(checkpoint_step(folder.name) or 0, folder) for folder in whole]
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
        saved, _ = saved_config(path)
        verb = saved["verb"]
    except (RunFolderError, KeyError):
        raise ConfigError(f"diagnose.run={path}: holds no run; name the folder of one, e.g. runs/NAME") from None
    if verb != "train":
        raise ConfigError(f"diagnose.run={path}: is a run of iwopd {verb}; name a training run")
    current = stored(config, verb)
    differing = [
        f"{key}={'null' if there is None else there}"
        for key in OF_THE_RUN
        if (there := _lookup(saved, key)) != _lookup(current, key)
    ]
    if differing:
        raise ConfigError(f"diagnose.run={path}: was trained with other settings; add {' '.join(differing)}")


def _lookup(tree: object, key: str) -> object:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
