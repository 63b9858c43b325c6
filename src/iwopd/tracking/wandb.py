"""Weights & Biases as a mirror of the metrics: curves over our own steps, the config, and samples token by token."""

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from iwopd.errors import ConfigError, first_line
from iwopd.redact import clean
from iwopd.setting import setting
from iwopd.tracking import samples
from iwopd.tracking.base import ProjectTracking, TrackedRun

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

GROUPS = ("train", "eval", "sync", "tokens", "time", "memory", "data")
MODES = ("auto", "online", "offline", "disabled")


@dataclass(kw_only=True)
class WandbTracking(ProjectTracking):
    """Weights & Biases."""

    name = package = "wandb"

    wandb: bool = setting(False, "also to Weights & Biases")
    entity: str | None = setting(None, "wandb team or user")
    mode: str = setting(
        "auto", "auto: online where wandb has a login, else offline; or as wandb's modes", choices=MODES
    )

    def problems(self) -> Iterator[str]:
        """See `Tracking`."""
        wrong = sorted(set("/\\#?%:") & set(self.project))
        if wrong:
            yield (
                f"tracking.project={self.project}: wandb allows no {' '.join(wrong)} in a project's name; use letters, "
                "digits, - and _"
            )
        for key in ("project", "entity", "group"):
            value = getattr(self, key)
            if value is not None and not 1 <= len(value.strip()) <= 128:
                yield f"tracking.{key}={value}: wandb needs a name of 1 to 128 characters; give it one"

    def start(self, run: TrackedRun) -> "WandbMirror":
        """See `Tracking`.

        Raises:
            ConfigError: wandb refuses to start.
        """
        return WandbMirror(self, run)

    def abandon(self) -> None:
        """See `Tracking`: as the program ends wandb would wait for its service, or raise again where that is gone."""
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # which warns at every write to a lost connection
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "wandb" in child.name():
                    child.kill()
        with suppress(Exception, SystemExit):
            self.library().teardown()


class WandbMirror:
    """See `Mirror`; a resumed run continues in the same wandb run."""

    def __init__(self, settings: WandbTracking, run: TrackedRun):
        self.wandb = settings.library()
        self.run = self._start(
            {
                "dir": run.folder,
                "config": run.config,
                "name": run.name,
                "id": run.known,
                "resume": "allow" if run.known else None,
                "project": settings.project,
                "entity": settings.entity,
                "group": settings.group,
                "mode": settings.mode,
            }
        )
        self.id: str | None = self.run.id
        # Our own step, not wandb's: a resumed run may write a step again, which wandb's counter would refuse.
        self.run.define_metric("step", hidden=True)
        for group in GROUPS:
            self.run.define_metric(f"{group}/*", step_metric="step")

    def _start(self, given: dict[str, Any]) -> "Run":
        """Online where it is asked for or possible; in mode auto a machine that is paid for does not stop for it."""
        if given["mode"] != "auto":
            return self._init(given)
        why = "nobody is logged in"
        if self._logged_in():
            try:
                return self._init(given | {"mode": "online"})
            except ConfigError as error:  # network, account and quota
                why = first_line(error.__cause__ or error)
        run = self._init(given | {"mode": "offline"})
        log.info("wandb: offline, as %s; upload it later with: wandb sync %s", why, Path(run.dir).parent)
        return run

    def _init(self, given: dict[str, Any]) -> "Run":
        """wandb keeps the command line; it gets it without secrets."""
        arguments = sys.argv
        sys.argv = [clean(argument) for argument in arguments]
        try:
            return self.wandb.init(**given)
        except Exception as error:  # each of its own type
            raise _refusal(given, error) from error
        finally:
            sys.argv = arguments

    def _logged_in(self) -> bool:
        """True where wandb finds a key in the environment, its settings or ~/.netrc; without asking anybody."""
        try:
            return bool(self.wandb.login(prompt=False, verify=False))
        except Exception:  # a key that cannot be one
            return False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Mirror`."""
        self.run.log({"step": step, **metrics})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Mirror`: a table with a row per response, a page where tokens are shaded by their weights, a figure.

        The page is no column of the table: wandb keeps media of tables apart from the run, out of reach of a later sync
        from another machine.
        """
        columns = samples.table(step, rows)
        data = [list(row) for row in zip(*columns.values(), strict=True)]
        found = {
            "samples": self.wandb.Table(columns=list(columns), data=data),
            "samples_shaded": self.wandb.Html(samples.page(rows), inject=False),
        }
        image = samples.figure(rows)
        if image is not None:
            found["samples_by_position"] = self.wandb.Image(image)
        self.run.log({"step": step, **found})

    def close(self) -> None:
        """See `Mirror`."""
        self.run.finish()


def _refusal(given: Mapping[str, Any], error: Exception) -> ConfigError:
    """Blames the setting that wandb's own words name, else the mode."""
    reason = first_line(error)
    key = next((key for key in ("project", "entity", "group") if re.search(rf"\b{key}\b", reason)), "mode")
    fix = "log in, or set it to offline" if key == "mode" else "correct it, or set tracking.mode=offline"
    return ConfigError(f"tracking.{key}={given[key]}: wandb does not start ({reason}); {fix}")
