"""A run that is resumed with another end (`run.steps`, `run.tokens`): allowed where no step taken would change."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from iwopd.config import Config
from iwopd.errors import RunFolderError
from iwopd.runs.checkpoints import Checkpoints
from iwopd.runs.folder import MayDiffer
from iwopd.training.schedule import Position, depending_on_the_end

ENDS = ("run.steps", "run.tokens")


def another_end(config: Config, folder: Path) -> MayDiffer:
    """For `RunFolder`: lets the end of the run in `folder` differ, or says why it must not."""

    def may_differ(saved: Mapping[str, Any], differing: Sequence[str]) -> Collection[str]:
        if not set(differing) <= set(ENDS):
            return ()  # it is another run: everything that differs is reported together
        _check(config, saved, differing, taken(folder))
        return differing

    return may_differ


def taken(folder: Path) -> Position:
    """The steps and tokens that the newest checkpoint has; none where there is no checkpoint."""
    newest = Checkpoints(folder).newest()
    if newest is None:
        return Position()
    state = json.loads((newest / "trainer.json").read_text(encoding="utf-8"))
    return Position(int(state["step"]), int(state["tokens"]))


def _check(config: Config, saved: Mapping[str, Any], differing: Sequence[str], done: Position) -> None:
    run = config.run
    was = ", ".join(f"{key}={_shown(saved.get(key))}" for key in differing)
    now = ", ".join(f"{key}={_shown(getattr(run, key.removeprefix('run.')))}" for key in differing)
    if run.tokens is not None and "run.tokens" not in differing:
        raise RunFolderError(
            f"{now}: run.tokens={run.tokens} says when this run ends, whatever run.steps is; set a larger run.tokens, "
            f"and {was} as it was"
        )
    if not done.step and saved.get("run.steps") and (Path(str(run.dir)) / "final").exists():
        raise RunFolderError(
            f"{now}: {run.dir} has a final/ and no checkpoint to resume from; choose another folder, or put one back"
        )
    reasons = depending_on_the_end(config)
    if done.step and reasons:
        raise RunFolderError(
            f"{now}: the run in {run.dir} was begun with {was}, and by {' and '.join(reasons)} each of its "
            f"{done.step} steps depends on that: they would have been others; resume it with {was}, or train from "
            "scratch in another folder"
        )
    reached, end, what = (
        (done.step, run.steps, "steps were taken")
        if run.tokens is None
        else (done.tokens, run.tokens, "tokens generated")
    )
    if reached > end:
        raise RunFolderError(
            f"{now}: {reached} {what} already in {run.dir}, with {was}; give {reached} or more, or another folder"
        )


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
