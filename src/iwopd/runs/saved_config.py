"""config.yaml: written into a run's folder and into each of its checkpoints, so that one that is lost costs nothing."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from iwopd.errors import RunFolderError
from iwopd.runs.checkpoints import Checkpoints

CONFIG = "config.yaml"
END = "\n...\n"  # of a whole one: YAML that is cut short is YAML too


def config_text(config: dict[str, Any]) -> str:
    """What config.yaml holds."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, explicit_end=True)


def saved_config(run: Path) -> tuple[dict[str, Any], Path]:
    """The config of the run in a folder, and the file that it was read from: config.yaml, or where that is lost or
    damaged the copy in the newest whole checkpoint.

    Raises:
        RunFolderError: neither can be read.
    """
    own = run / CONFIG
    if (found := _read(own)) is not None:
        return found, own
    newest = Checkpoints(run).newest()
    if newest is not None and (found := _read(newest / CONFIG)) is not None:
        return found, newest / CONFIG
    raise RunFolderError(
        f"run.dir={run}: its config.yaml cannot be read, being damaged or of another version, and no whole checkpoint "
        "has a copy; choose another folder"
    )


def _read(file: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, yaml.YAMLError):
        text = file.read_text(encoding="utf-8")
        found = yaml.safe_load(text) if text.endswith(END) else None
        return found if isinstance(found, dict) else None
    return None
