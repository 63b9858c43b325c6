"""What a tracker is: settings of `tracking`, and a mirror of a run's metrics made from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from iwopd.setting import setting


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker learns of the run whose metrics it is given.

    Attributes:
        folder: the run's.
        config: all settings, as plain values without secrets.
        known: the id that the tracker gave the run in an earlier session, None at first.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    known: str | None = None


class Mirror(Protocol):
    """A second place for metrics; any call may raise whatever its library does.

    Attributes:
        id: by which a resumed run finds its earlier part; None where the run's folder says it.
    """

    id: str | None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step."""
        ...

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A few responses with their weights, see `iwopd.training.samples.sample_rows`."""
        ...

    def close(self) -> None:
        """Finish writing."""
        ...


@dataclass(kw_only=True)
class Tracking:
    """The settings that every tracker has; one class for each adds its own, the first of which is its name and switches
    it on."""

    name: ClassVar[str]
    package: ClassVar[str]  # without which it cannot start; the extra of pyproject.toml has the tracker's name

    timeout_s: float = setting(120.0, "seconds that a run waits at its end for trackers to take what is left", low=0)

    def problems(self) -> Iterator[str]:
        """What the library would refuse once models are loaded: one line each, with key, value, reason and fix."""
        yield from ()

    def start(self, run: TrackedRun) -> Mirror:
        """Import the library, and begin or continue the run there.

        Raises:
            Exception: of any type; what it says is shown, and the training has no such mirror.
        """
        raise NotImplementedError  # each tracker has its own

    def library(self, module: str = "") -> Any:  # noqa: ANN401  untyped here, for it need not be installed
        """The package, or a module; imported when the run has begun."""
        return import_module(module or self.package)

    def abandon(self) -> None:
        """After an error, or where it does not answer: leave nothing that could fail or wait as the program ends."""


@dataclass(kw_only=True)
class ProjectTracking(Tracking):
    """Of trackers that keep runs in projects."""

    project: str = setting("iwopd", "project in wandb and trackio, experiment in MLflow")
    group: str | None = setting(None, "runs that belong together, where the tracker has groups; a tag in MLflow")


def section(config: Tracking, kind: type[Tracking]) -> Tracking:
    """The settings of one tracker among those of all."""
    return kind(**{entry.name: getattr(config, entry.name) for entry in fields(kind)})
