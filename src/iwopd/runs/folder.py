"""A run's folder: its config, its checkpoints, its final model. What is there is whole, or is not there.

    config.yaml  about.json  inputs.json  metrics.jsonl  samples.jsonl  train.log  eval/
    checkpoints/step-NNNNNN/  final/

How files, checkpoints and the lock are kept is in `iwopd.runs.files`, `.checkpoints` and `.lock`.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iwopd.config.stored import SCHEMA
from iwopd.errors import RunFolderError
from iwopd.parallel import world
from iwopd.runs import about
from iwopd.runs.checkpoints import Checkpoints
from iwopd.runs.files import read_object, write_whole
from iwopd.runs.lock import FolderLock
from iwopd.runs.saved_config import CONFIG, config_text, saved_config

log = logging.getLogger(__name__)

INPUTS = "inputs.json"  # digests of what the run reads, see `iwopd.preflight.digests`
# Keys that may differ when a run is resumed: they say where and how often things are written, not what is computed.
RESUME_MAY_CHANGE = re.compile(
    r"run\.(dir|name|date|resume|save_every|keep|device|samples|on_collapse)|tracking(\..*)?|eval\.model"
    r"|(ablate|push|report|doctor)\..*|parallel(\.(processes|replicate|reshard|teacher|timeout_s|wait_s))?"
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
    """One run's folder; hold it open with ``with`` so that nobody else writes into it. Of several processes the leader
    reads and writes it, and the others learn what it found.

    Args:
        path: the folder; made on entering.
        config: the run's config as plain values.
        resume: continue with what is there.
        may_differ: from the saved config, as dotted keys, and the keys in which this one differs, to those of them that
            may nevertheless; with them the run is resumed as one of this config. Raises RunFolderError to say why not.

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
        self._entered = False
        self._recorded = False  # this session is in about.json
        self._moved = False  # inputs are elsewhere now
        self._config_from = self.path / CONFIG
        self.lock = FolderLock(self.path / ".lock")
        self.checkpoints = Checkpoints(self.path)

    @property
    def final(self) -> Path:
        return self.checkpoints.final

    @property
    def locked(self) -> bool:
        """True while this object keeps others from writing there."""
        return self._entered

    @property
    def _unused(self) -> bool:
        """True for what a run leaves that failed while it started: its folder is free again."""
        left = any((self.path / name).exists() for name in BEGUN) or bool(self.checkpoints.all())
        return (self.path / "about.json").exists() and not left

    def check(self) -> None:
        """Everything that can be refused without writing; called before anything heavy loads."""
        world().alone(self._check_all)

    def _check_all(self) -> None:
        try:
            self._check()
        except RunFolderError:
            raise
        except (OSError, ValueError) as error:  # of the path itself
            reason = getattr(error, "strerror", None) or str(error)
            raise RunFolderError(f"run.dir={self.path}: {reason}; choose another folder") from error

    def _check(self) -> None:
        begun = (self.path / CONFIG).exists() or bool(self.checkpoints.all())
        if begun and not self._unused:
            self._check_config()
            self.checkpoints.check_final()
        elif not begun and self.path.is_dir() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise RunFolderError(f"run.dir={self.path}: holds files but no run; choose an empty or a new folder")
        parent = self.path
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise RunFolderError(f"run.dir={self.path}: {parent} cannot be written to; choose another folder")

    def _check_config(self) -> None:
        there, self._config_from = saved_config(self.path)
        saved = dict(_flatten(there))
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
                f"run.dir={self.path}: holds this run already; add run.resume=true to resume it, or choose another "
                "folder"
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
        """True for a key that may differ when a run is resumed; only an evaluation is one of `eval.model`."""
        of_the_run = key == "eval.model" and self.config.get("verb") == "eval"
        return bool(RESUME_MAY_CHANGE.fullmatch(key.removeprefix("environment."))) and not of_the_run

    def _is_place(self, key: str, *paths: object) -> bool:
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
        found = read_object(file)
        if found is None:
            raise RunFolderError(f"{file}: is damaged; remove it to resume without it")
        return found

    def __enter__(self) -> "RunFolder":
        world().alone(self._enter)
        self._entered = True
        return self

    def _enter(self) -> None:
        self._check_all()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except OSError as error:
            if isinstance(error, RunFolderError):
                raise
            raise RunFolderError(
                f"run.dir={self.path}: cannot be written to ({error.strerror or error}); choose another folder"
            ) from error
        try:
            self._begin()
        except BaseException:
            self.lock.release()
            raise

    def _begin(self) -> None:
        """Have there what a run has from its start."""
        self.checkpoints.tidy()
        lost = self._config_from.parent != self.path
        if lost:
            log.warning("%s is lost or damaged; %s has it", self.path / CONFIG, self._config_from.parent.name)
        if self._changed or self._unused or not (self.path / CONFIG).exists():
            self.record()
            return
        self._write(about.FILE, json.dumps(about.resumed(about.read(self.path)), indent=2) + "\n")
        self._recorded = True
        if self.inputs is not None and not (self.path / INPUTS).exists():
            self._write(INPUTS, json.dumps(self.inputs))
        if self._moved or lost:
            self._write_config()

    def record(self) -> None:
        """Write about.json and config.yaml again."""
        earlier = None if self._unused else about.read(self.path)
        self._write(about.FILE, json.dumps(about.about(earlier, again=self._recorded), indent=2) + "\n")
        self._recorded = True
        if self.inputs is not None:
            self._write(INPUTS, json.dumps(self.inputs))
        self._write_config()

    def _write_config(self) -> None:
        self._write(CONFIG, config_text(self.config))

    def _write(self, name: str, text: str) -> None:
        write_whole(self.path / name, text)

    def __exit__(self, *exception: object) -> None:
        self._entered = False
        if self.lock.held:
            self.lock.release()

    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int) -> None:
        """See `Checkpoints.save`; each has the run's config with it."""

        def write_all(folder: Path) -> None:
            write(folder)
            world().alone(lambda: (folder / CONFIG).write_text(config_text(self.config), encoding="utf-8"))

        world().alone(self.lock.check)
        self.checkpoints.save(step, write_all, keep)

    def save_final(self, write: Callable[[Path], None], step: int) -> None:
        """See `Checkpoints.save_final`."""
        world().alone(self.lock.check)
        self.checkpoints.save_final(write, step)

    @property
    def final_step(self) -> int | None:
        """See `Checkpoints`."""
        return world().alone(lambda: self.checkpoints.final_step)

    def saved(self) -> list[Path]:
        """Checkpoints that can be resumed from, oldest first."""
        return self.checkpoints.whole(deep=False)

    def last_checkpoint(self) -> Path | None:
        """See `Checkpoints.last`."""
        return world().alone(self.checkpoints.last)


def _flatten(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
