"""Trackio as a mirror of the metrics: on this machine (`trackio show`), or on a Space of the Hugging Face hub."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from iwopd.setting import setting
from iwopd.tracking import samples
from iwopd.tracking.base import ProjectTracking, TrackedRun


@dataclass(kw_only=True)
class TrackioTracking(ProjectTracking):
    """Trackio."""

    name = package = "trackio"

    trackio: bool = setting(False, "also to Trackio")
    space: str | None = setting(
        None, "Space of the Hugging Face hub that shows Trackio's runs, USER/NAME; null: this machine keeps them"
    )

    def problems(self) -> Iterator[str]:
        """See `Tracking`."""
        if not self.project.strip() or "/" in self.project or "\\" in self.project:
            yield f"tracking.project={self.project}: Trackio makes a file of that name; use letters, digits, - and _"

    def start(self, run: TrackedRun) -> "TrackioMirror":
        """See `Tracking`."""
        return TrackioMirror(self, run)


class TrackioMirror:
    """See `Mirror`; a resumed run continues as the same run, which Trackio finds by its name: that is made unique."""

    def __init__(self, settings: TrackioTracking, run: TrackedRun):
        self.trackio = settings.library()
        taken = {each.name for each in self._runs(settings.project)}
        fresh = f"{run.name}-{secrets.token_hex(2)}" if settings.space or run.name in taken else run.name
        self.run = self.trackio.init(
            settings.project,
            name=run.known or fresh,
            group=settings.group,
            space_id=settings.space,
            config=run.config,
            resume="allow" if run.known else "never",
            auto_log_cpu=False,
            embed=False,
        )
        self.id: str | None = self.run.name

    def _runs(self, project: str) -> list[Any]:
        with suppress(ValueError):  # no such project yet
            return list(self.trackio.Api().runs(project))
        return []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Mirror`."""
        self.run.log(dict(metrics), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Mirror`: a table and a figure."""
        columns = samples.table(step, rows)
        data = [list(row) for row in zip(*columns.values(), strict=True)]
        found: dict[str, Any] = {"samples": self.trackio.Table(columns=list(columns), data=data)}
        image = samples.figure(rows)
        if image is not None:
            found["samples_by_position"] = self.trackio.Image(image)
        self.run.log(found, step=step)

    def close(self) -> None:
        """See `Mirror`."""
        self.run.finish()
