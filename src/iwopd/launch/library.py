"""The program as a library: `from iwopd import distil`."""

import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from iwopd.ablate.arms import CommandLine, override
from iwopd.config import Config, register_schemas
from iwopd.config.presets import config_folder, groups
from iwopd.errors import ConfigError, ProcessError, first_line
from iwopd.launch import carry_out, check, understood
from iwopd.launch.messages import explain
from iwopd.launch.overrides import wrong
from iwopd.runs.files import read_rows
from iwopd.runs.interrupts import Collapsed

ADDED = ("experiment", "debug")  # groups that the defaults have no choice of: +experiment=NAME


@dataclass(frozen=True)
class Distilled:
    """What a training run left.

    Attributes:
        folder: the run's; what is in it: docs/runs.md.
        model: the trained student, weights and tokenizer; None where `run.on_collapse=stop` ended the run before.
        metrics: the rows of metrics.jsonl in the order of steps; each has `step`, and values by name.
    """

    folder: Path
    model: Path | None
    metrics: tuple[dict[str, float], ...]

    @property
    def accuracy(self) -> float | None:
        """The last one measured, from 0 to 1; None without a benchmark."""
        return next(reversed(self.series("eval/accuracy").values()), None)

    def series(self, name: str) -> dict[int, float]:
        """The values of one metric by step, where it was logged."""
        return {int(row["step"]): row[name] for row in self.metrics if name in row}


def distil(*settings: str | Mapping[str, object], **more: object) -> Distilled:
    """`iwopd train` from Python, with the same settings, folder and checkpoints.

        distil("+experiment=smoke", {"optim.lr": 1e-4}, weighting="first30", run={"steps": 20})

    Args:
        settings: as on the command line ("weighting=iw"), or by their keys, with dots or in sections.
        more: the same by keyword: a preset's name for a group, a dictionary for the fields of a section.

    Raises:
        IwopdError: what the program would say in one line; nothing was written unless training had begun.
        KeyboardInterrupt: Ctrl-C; the last whole step is saved, and `run={"resume": True}` resumes from there.
    """
    overrides = list(as_overrides([*settings, more]))
    folder, composed = Path(), _composed(overrides)

    def line() -> CommandLine:
        return CommandLine([], overrides, lambda more: check(_composed(more), "train", more))

    def settled(config: Config) -> None:
        nonlocal folder
        assert config.run.dir is not None
        folder = Path(config.run.dir)

    collapsed = False
    try:
        carry_out(composed, "train", "iwopd.commands.train", overrides, line, settled)
    except SystemExit as stop:
        collapsed = stop.code == Collapsed.STATUS
        if stop.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from None
        if not collapsed and isinstance(stop.code, int) and stop.code < 128:
            raise ProcessError(f"a process of the training ended with status {stop.code}; it has said why") from None
        if not collapsed:
            raise
    return Distilled(folder, None if collapsed else folder / "final", tuple(read_rows(folder / "metrics.jsonl")))


def _composed(overrides: Sequence[str]) -> DictConfig:
    register_schemas()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides)) from None
    except Exception as error:  # what Hydra lets through of odd overrides is of any type
        raise ConfigError(f"{wrong(error, overrides)}: {first_line(error)}; correct it") from None


def as_overrides(given: Iterable[str | Mapping[str, object]]) -> Iterator[str]:
    """Hydra's overrides, of texts and mappings as `distil` takes them."""
    for each in given:
        if isinstance(each, str):
            yield understood(each)
        else:
            yield from _of_mapping(each)


def _of_mapping(settings: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Choices of presets as GROUP=NAME, all else as ++KEY=VALUE, which adds what a preset does not have."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        value = [*value] if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        if isinstance(value, Mapping) and value:
            yield from _of_mapping(value, f"{key}.")
        elif key == "benchmark" and not value:
            yield "benchmark=[]"
        elif key in groups():
            yield f"{'+' if key in ADDED else ''}{override(key, value)}"
        else:
            yield f"++{override(key, value)}"
