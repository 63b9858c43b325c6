"""The presets under conf/: their folder, their groups, and which of a group's has a field."""

from dataclasses import fields
from pathlib import Path

from iwopd.config import SCHEMAS


def config_folder() -> Path:
    """conf/: inside the installed package, or at the top of the repository."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def groups() -> list[str]:
    """What can be chosen by GROUP=NAME."""
    return sorted(entry.name for entry in config_folder().iterdir() if entry.is_dir())


def presets_with(group: str, name: str) -> list[str]:
    """The presets of a group that have a field of that name, where they are those called as their schemas."""
    schemas = SCHEMAS.get(f"schema/{group}", {})
    having = [choice for choice, schema in schemas.items() if name in {entry.name for entry in fields(schema)}]
    return having if all((config_folder() / group / f"{choice}.yaml").is_file() for choice in having) else []
