"""A run's folder: its config, its checkpoints, its final model. What is there is whole, or is not there.

    config.yaml  about.json  inputs.json  metrics.jsonl  samples.jsonl  train.log  eval/
    checkpoints/step-NNNNNN/  final/

Folders are written under a temporary name, flushed to the disk, listed in a manifest of sizes and SHA-256 hashes, and
then renamed; a process killed at any moment leaves the last whole checkpoint as it was.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from iwopd.config.stored import SCHEMA
from iwopd.errors import ModelError, RunFolderError
from iwopd.runs import about

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
INPUTS = "inputs.json"  # digests of what the run reads, see `iwopd.runs.digests`
# Keys that may differ when a run goes on: they say where and how often things are written, not what is computed.
FREE_KEYS = re.compile(
    r"run\.(dir|name|date|resume|save_every|keep|device|samples)|tracking(\..*)?|eval\.model|(ablate|push|doctor)\..*"
    r"|(teacher|teachers\.[^.]+|base)\.(device|urls|served_as)"
    r"|(rollout|scoring)\.(urls|served_as|http\..*|sync|sync_dir|sleep|parity\..*|engine\.(gpu_memory|kv_cache_gib))"
)


# Where inputs are; their contents are compared instead, where a run kept digests of them.
PLACES = re.compile(
    r"(student|teacher|teachers\.[^.]+|base|data|data\.sources\.[^.]+|eval\.benchmarks\.[^.]+)\.(path|revision)|eval\.model"
)


MayDiffer = Callable[[Mapping[str, Any], Sequence[str]], Collection[str]]

# What a training, an evaluation, a diagnosis or a study leaves as soon as there is something to keep.
BEGUN = ("metrics.jsonl", "eval", "final", "diagnose.json", "runs")


class RunFolder:
    """One run's folder; hold it open with ``with`` so that nobody else writes into it.

    Args:
        path: the folder; made on entering.
        config: the run's config as plain values.
        resume: go on with what is there.
        may_differ: from the saved config, as dotted keys, and the keys in which this one differs, to those of them that
            may nevertheless; with them the run goes on as one of this config. Raises RunFolderError to say why not.

    Raises:
        RunFolderError: on entering: cannot be written, in use, holds another run, or this one and `resume` is off.
    """

    def __init__(
        self, path: str | Path, config: dict[str, Any], *, resume: bool = False, may_differ: MayDiffer | None = None
    ):
        self.path = Path(path)
        self.config = config
        self.resume = resume
        self.may_differ = may_differ
        self._changed = False
        self.inputs: dict[str, Any] | None = None  # kept when the folder is entered
        self._recorded = False  # this session stands in about.json
        self._moved = False  # inputs are elsewhere now
        self._lock = FileLock(self.path / ".lock", timeout=0)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def held(self) -> bool:
        """True while this object keeps others from writing there."""
        return self._lock.is_locked

    @property
    def _unused(self) -> bool:
        """True for what a run leaves that failed while it started: its folder is free again."""
        left = any((self.path / name).exists() for name in BEGUN) or bool(self.saved())
        return (self.path / "about.json").exists() and not left

    def check(self) -> None:
        """Everything that can be refused without writing; called before anything heavy loads."""
        try:
            self._check()
        except RunFolderError:
            raise
        except (OSError, ValueError, yaml.YAMLError) as error:  # of the path itself, or of a config.yaml that is none
            reason = getattr(error, "strerror", None) or "its config.yaml cannot be read"
            raise RunFolderError(f"run.dir={self.path}: {reason}; choose another folder") from error

    def _check(self) -> None:
        config_file = self.path / "config.yaml"
        if config_file.exists() and not self._unused:
            self._check_config(config_file)
        elif (
            not config_file.exists()
            and self.path.is_dir()
            and any(not entry.name.startswith(".") for entry in self.path.iterdir())
        ):
            raise RunFolderError(f"run.dir={self.path}: holds files but no run; choose an empty or a new folder")
        parent = self.path
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise RunFolderError(f"run.dir={self.path}: {parent} cannot be written to; choose another folder")

    def _check_config(self, config_file: Path) -> None:
        saved = dict(_flatten(yaml.safe_load(config_file.read_text(encoding="utf-8")) or {}))
        current = dict(_flatten(self.config))
        self._check_schema(saved)
        differing = sorted(
            key
            for key in saved.keys() | current.keys()
            if saved.get(key) != current.get(key)
            and not self._is_free(key)
            and not self._is_place(key, saved.get(key), current.get(key))
        )
        if differing and self.may_differ:
            allowed = self.may_differ(saved, differing)
            self._changed = bool(allowed)
            differing = [key for key in differing if key not in allowed]
        if differing:
            shown = [f"{key} (there {saved.get(key)}, here {current.get(key)})" for key in differing[:6]]
            more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
            raise RunFolderError(
                f"run.dir={self.path}: holds a run with another config; differing: {', '.join(shown)}{more}; "
                "choose another folder, or give the same settings"
            )
        if not self.resume:
            raise RunFolderError(
                f"run.dir={self.path}: holds this run already; add run.resume=true to go on, or choose another folder"
            )

    def _check_schema(self, saved: Mapping[str, Any]) -> None:
        """Refuse a run of another schema: its keys may mean something else, and its checkpoints hold other things."""
        found = saved.get("schema", 1)
        if found != self.config.get("schema", found):
            version = about.read(self.path).get("versions", {}).get("iwopd", "another version")
            raise RunFolderError(
                f"run.dir={self.path}: holds a run of config schema {found} (iwopd {version}), and this iwopd has "
                f"schema {SCHEMA}; resume it with the iwopd that began it, or choose another folder"
            )

    def _is_free(self, key: str) -> bool:
        """True for a key that may differ when a run goes on; only an evaluation is one of `eval.model`."""
        of_the_run = key == "eval.model" and self.config.get("verb") == "eval"
        return bool(FREE_KEYS.fullmatch(key.removeprefix("environment."))) and not of_the_run

    def _is_place(self, key: str, *paths: Any) -> bool:
        """True for a key that says where something is whose contents can be compared; a toy is its name."""
        compared = (
            self.resume and self.saved_inputs() is not None and PLACES.fullmatch(key.removeprefix("environment."))
        )
        found = bool(compared) and not any(str(path).startswith("toy://") for path in paths)
        self._moved |= found
        return found

    def saved_inputs(self) -> dict[str, Any] | None:
        """What the run read when it began; None where that is not known."""
        file = self.path / INPUTS
        if self._unused or not file.exists():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{file}: cannot be read ({error}); remove it to go on without") from None

    def __enter__(self) -> "RunFolder":
        self.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise RunFolderError(f"run.dir={self.path}: another process is writing to it; wait, or stop it") from None
        except OSError as error:
            raise RunFolderError(
                f"run.dir={self.path}: cannot be written to ({error.strerror or error}); choose another folder"
            ) from error
        for leftover in [*self.path.glob(".draft-*"), *self.checkpoints.glob(".draft-*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        if self._changed or self._unused or not (self.path / "config.yaml").exists():
            self.record()
        else:
            self._write(about.FILE, json.dumps(about.resumed(about.read(self.path)), indent=2) + "\n")
            self._recorded = True
        if self.inputs is not None and not (self.path / INPUTS).exists():
            self._write(INPUTS, json.dumps(self.inputs))
        if self._moved:
            self._write_config()
        return self

    def record(self) -> None:
        """Write about.json and config.yaml anew."""
        earlier = None if self._unused else about.read(self.path)
        self._write(about.FILE, json.dumps(about.about(earlier, again=self._recorded), indent=2) + "\n")
        self._recorded = True
        if self.inputs is not None:
            self._write(INPUTS, json.dumps(self.inputs))
        self._write_config()

    def _write_config(self) -> None:
        self._write("config.yaml", yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def _write(self, name: str, text: str) -> None:
        draft = self.path / f".draft-{name}"
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(self.path / name)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise RunFolderError(f"{self.path / name}: cannot be written ({error.strerror}); make room") from error

    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int) -> None:
        """Have `write` fill a folder, and make it checkpoint `step`; remove all but the last `keep` (0: none).

        Raises:
            RunFolderError: it could not be written; earlier checkpoints are as they were.
        """
        target = self.checkpoints / f"step-{step:06d}"
        self._publish(target, write)
        # Later ones are damaged, else the run had gone on from there; they must not push whole ones out.
        earlier = [folder for folder in self.saved() if folder.name <= target.name]
        for old in earlier[:-keep] if keep else []:
            _remove(old)

    def save_final(self, write: Callable[[Path], None], step: int) -> None:
        """Have `write` fill final/ with the model of that step, in place of one that is there."""
        self._publish(self.final, write, step=step)

    @property
    def final_step(self) -> int | None:
        """The step that the model in final/ is of; None where there is none, or it does not say."""
        try:
            return json.loads((self.final / MANIFEST).read_text()).get("step")
        except (OSError, ValueError, AttributeError):
            return None

    def _publish(self, target: Path, write: Callable[[Path], None], **about: Any) -> None:
        draft = target.with_name(f".draft-{target.name}")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            write(draft)
            entries = {
                str(file.relative_to(draft)): {"size": file.stat().st_size, "sha256": sha256(file)}
                for file in sorted(draft.rglob("*"))
                if file.is_file()
            }
            (draft / MANIFEST).write_text(json.dumps({**about, "files": entries}, indent=1), encoding="utf-8")
            for entry in [*draft.rglob("*"), draft]:
                _flush(entry)
            if target.exists():
                _remove(target)
            draft.rename(target)
            _flush(target.parent)
        except ModelError as error:  # what was written does not load: no matter of the disk
            shutil.rmtree(draft, ignore_errors=True)
            raise ModelError(f"{target}: {error}; earlier checkpoints are as they were") from error
        except Exception as error:  # OSError, or what safetensors and torch make of it
            shutil.rmtree(draft, ignore_errors=True)
            whole = self.saved()
            stays = f"the last good checkpoint is {whole[-1].name}" if whole else "there is no checkpoint yet"
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunFolderError(
                f"{target}: cannot be written ({reason}); {stays}: make room if the disk is full, then run.resume=true"
            ) from error

    def saved(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        return sorted(self.checkpoints.glob("step-*"))

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that matches its manifest; damaged ones are named and passed over.

        Raises:
            RunFolderError: there are checkpoints, and all are damaged.
        """
        damaged = []
        for folder in reversed(self.saved()):
            problem = damage(folder)
            if problem is None:
                return folder
            damaged.append(f"{folder.name}: {problem}")
            log.warning("checkpoint %s is damaged (%s); going back to the one before", folder.name, problem)
        if damaged:
            raise RunFolderError(
                f"run.dir={self.path}: no checkpoint is whole ({'; '.join(damaged)}); "
                "delete checkpoints/ to start again from step 0"
            )
        return None


def damage(folder: Path, except_for: Collection[str] = ()) -> str | None:
    """What is wrong with a checkpoint folder, or None; `except_for` are files that may have been edited."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in entries.items():
            if name in except_for and (folder / name).is_file():
                continue
            size = (folder / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} of {expected['size']} bytes"
            if sha256(folder / name) != expected["sha256"]:
                return f"{name} has other contents than the manifest says"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _flush(entry: Path) -> None:
    descriptor = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Out of sight first: a process killed while deleting must not leave half a checkpoint under its name."""
    trash = folder.with_name(f".draft-old-{folder.name}")
    shutil.rmtree(trash, ignore_errors=True)
    with contextlib.suppress(OSError):  # one checkpoint too many harms nobody
        folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)
