"""The manifest of a checkpoint or final model: the id of its run, its step, and the size and SHA-256 of every file."""

import json
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from iwopd.runs.files import flush, read_object, sha256

MANIFEST = "manifest.json"
ID_FILE = ".run-id"
ID = re.compile(r"[0-9a-f]{12}")
SMALL = 2**20  # bytes: files that a quick look reads too


def seal(folder: Path, run: str, step: int) -> None:
    """Write the manifest of what is in a folder, and have all of it on the disk."""
    entries = {
        str(file.relative_to(folder)): {"size": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = {"run": run, "step": step, "files": entries}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for entry in [*folder.rglob("*"), folder]:
        flush(entry)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; empty where there is none that can be read."""
    return read_object(folder / MANIFEST) or {}


def run_id(run: Path, *, kept: bool = True) -> str | None:
    """What distinguishes a run from others; None before it has begun.

    Args:
        kept: where its file was lost, as in a copy without hidden files, take what its newest checkpoint carries.
    """
    with suppress(OSError, ValueError):
        found = (run / ID_FILE).read_text(encoding="ascii").strip()
        if ID.fullmatch(found):
            return found
    manifests = sorted((run / "checkpoints").glob("step-*/" + MANIFEST), reverse=True) if kept else []
    for file in [*manifests, *([run / "final" / MANIFEST] if kept else [])]:
        found = str(read_manifest(file.parent).get("run"))
        if ID.fullmatch(found):
            return found
    return None


def verify(folder: Path, *, deep: bool = True, except_for: Collection[str] = ()) -> str | None:
    """What is wrong with a folder that has a manifest, or None.

    Args:
        deep: read every file; else only small ones, and compare the sizes of the others.
        except_for: files that may have been edited.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in entries.items():
            if name in except_for and (folder / name).is_file():
                continue
            size = (folder / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} of {expected['size']} bytes"
            if (deep or size <= SMALL) and sha256(folder / name) != expected["sha256"]:
                return f"{name} has other contents than the manifest says"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
