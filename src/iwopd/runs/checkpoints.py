"""Checkpoints and the final model of a run: whole or not there, known by exact names, marked with the run's id.

Each is a folder with a manifest: the id of its run, its step, and the size and SHA-256 of every file. It is written
under a draft's name that carries the id, flushed to the disk, and then renamed; a process killed at any moment leaves
the last whole one as it was. What does not carry the id is somebody else's, and is neither taken nor removed.
"""

import logging
import shutil
import uuid
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from iwopd.config.names import checkpoint_folders, checkpoint_name, checkpoint_step
from iwopd.errors import ModelError, RunFolderError, first_line
from iwopd.parallel import world
from iwopd.runs.files import DRAFT, FULL, flush, write_whole
from iwopd.runs.manifest import ID_FILE, read_manifest, run_id, seal, verify

log = logging.getLogger(__name__)


class Checkpoints:
    """What one run saved: checkpoints/step-NNNNNN/ and final/.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path):
        self.run = run
        self.folder = run / "checkpoints"
        self.final = run / "final"
        self._whole = set[Path]()  # read from end to end, or written, by this process

    @cached_property
    def id(self) -> str:
        """What distinguishes this run from others."""
        return run_id(self.run) or uuid.uuid4().hex[:12]

    def tidy(self) -> None:
        """Remove what an earlier process of this run did not come to write whole; keep the run's id."""
        for folder in (self.run, self.folder, self.run / "eval"):
            for leftover in [*folder.glob(f".draft-{self.id}-*"), *folder.glob(f"{DRAFT}*")]:
                _remove(leftover)
        if run_id(self.run, kept=False) != self.id:
            write_whole(self.run / ID_FILE, self.id + "\n")

    def save(self, step: int, write: Callable[[Path], None], keep: int) -> None:
        """Have `write` fill a folder, and make it checkpoint `step`; then keep the last `keep` whole ones (0: all).

        Raises:
            RunFolderError: it could not be written; earlier checkpoints are as they were.
        """
        target = self.folder / checkpoint_name(step)
        self._publish(target, write, step)
        if keep:
            world().alone(lambda: self._prune(step, keep))

    def save_final(self, write: Callable[[Path], None], step: int) -> None:
        """Have `write` fill final/ with the model of that step, in place of one that is there.

        Raises:
            RunFolderError: it could not be written, or final/ is not this run's.
        """
        world().alone(self.check_final)
        self._publish(self.final, write, step)

    def check_final(self) -> None:
        """Refuse a final/ that this run did not write.

        Raises:
            RunFolderError: there is one.
        """
        if self.final.exists() and not self._marked(self.final):
            raise RunFolderError(
                f"{self.final}: was not written by this run, and would have to make way for its model; move it away"
            )

    @property
    def final_step(self) -> int | None:
        """The step that the model in final/ is of; None where this run has written none."""
        return read_manifest(self.final).get("step") if self._marked(self.final) else None

    def all(self) -> list[Path]:
        """Folders with the name of a checkpoint, by their steps, whether whole or not and whoever wrote them."""
        return checkpoint_folders(self.folder)

    def last(self) -> Path | None:
        """The newest checkpoint of this run that matches its manifest; others are named and passed over.

        Raises:
            RunFolderError: there are checkpoints, and none can be used.
        """
        passed = list[str]()
        for folder in reversed(self.all()):
            problem = self.problem(folder)
            if problem is None:
                self._whole.add(folder)
                return folder
            passed.append(f"{folder.name} {problem}")
            log.warning("checkpoint %s %s; resuming from the one before", folder.name, problem)
        if passed:
            raise RunFolderError(
                f"run.dir={self.run}: no checkpoint is whole ({'; '.join(passed)}); "
                "delete checkpoints/ to start again from step 0"
            )
        return None

    def newest(self) -> Path | None:
        """The newest checkpoint of this run that can be used, as far as a quick look can tell; see `verify`."""
        return next((folder for folder in reversed(self.all()) if self.problem(folder, deep=False) is None), None)

    def whole(self, *, deep: bool = True) -> list[Path]:
        """The checkpoints of this run that can be used, oldest first; see `verify` for `deep`."""
        return [folder for folder in self.all() if self.problem(folder, deep=deep) is None]

    def problem(self, folder: Path, *, deep: bool = True) -> str | None:
        """Why a folder is no checkpoint that this run can be resumed from, or None."""
        manifest = read_manifest(folder)
        if manifest and manifest.get("run") != self.id:
            return "is another run's"
        if manifest and manifest.get("step") != checkpoint_step(folder.name):
            return f"is a copy of step {manifest.get('step')}"
        damaged = verify(folder, deep=deep)
        return None if damaged is None else f"is damaged ({damaged})"

    def _marked(self, folder: Path) -> bool:
        """True for what this run wrote, under the name that it gave it."""
        manifest = read_manifest(folder)
        named = folder == self.final or manifest.get("step") == checkpoint_step(folder.name)
        return manifest.get("run") == self.id and named

    def _prune(self, step: int, keep: int) -> None:
        # Later ones are damaged, else the run had been resumed from there; they must not push whole ones out.
        earlier = [folder for folder in self.all() if (checkpoint_step(folder.name) or 0) <= step]
        ours = [folder for folder in earlier if self._marked(folder)]
        if len(ours) <= keep:
            return
        for folder in reversed(ours):
            if not keep:
                _remove(folder, self.id)
            elif self._is_whole(folder):
                keep -= 1

    def _is_whole(self, folder: Path) -> bool:
        """Of one that this process has read or written, its files' sizes say it well enough."""
        if self.problem(folder, deep=folder not in self._whole) is not None:
            return False
        self._whole.add(folder)
        return True

    def _publish(self, target: Path, write: Callable[[Path], None], step: int) -> None:
        """All processes write their parts of what the leader begins and finishes."""
        draft = target.with_name(f".draft-{self.id}-{target.name}")
        try:
            world().alone(lambda: _begin(draft))
            world().together(lambda: write(draft))
            world().alone(lambda: self._finish(draft, target, step))
        except ModelError as error:  # what was written does not load: no matter of the disk
            raise ModelError(f"{target}: {error}; earlier checkpoints are as they were") from error
        except RunFolderError:
            raise
        except Exception as error:
            if not _of_the_disk(error):
                raise
            raise RunFolderError(self._not_written(target, error)) from error
        finally:
            if world().leader:
                shutil.rmtree(draft, ignore_errors=True)

    def _finish(self, draft: Path, target: Path, step: int) -> None:
        seal(draft, self.id, step)
        if target.exists() and self._marked(target):
            _remove(target, self.id)
        elif target.exists():
            _set_aside(target)
        draft.rename(target)
        flush(target.parent)
        flush(self.run)
        self._whole.add(target)

    def _not_written(self, target: Path, error: Exception) -> str:
        newest = self.newest()
        stays = f"the last good checkpoint is {newest.name}" if newest else "there is no checkpoint yet"
        number = getattr(error, "errno", None)
        known = "make room" if number in FULL else "check the folder and who may write there"
        fix = "make room if the disk is full" if number is None else known
        return f"{target}: cannot be written ({first_line(error)}); {stays}: {fix}, then run.resume=true"


def _begin(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)


def _set_aside(folder: Path) -> None:
    """What is not this run's keeps its contents, and gives up its name."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.set-aside-{number}")).exists():
        number += 1
    folder.rename(aside)
    log.warning("%s was not written by this run: it is now called %s", folder, aside.name)


def _remove(entry: Path, run: str | None = None) -> None:
    """Remove a file or a folder.

    Args:
        run: its id; the folder is renamed first, so that a process killed while deleting does not leave half a
            checkpoint under its name.
    """
    if run is not None:
        trash = entry.with_name(f".draft-{run}-old-{entry.name}")
        shutil.rmtree(trash, ignore_errors=True)
        try:
            entry = entry.rename(trash)
        except OSError:  # one checkpoint too many harms nobody
            return
    if entry.is_symlink() or entry.is_file():
        entry.unlink(missing_ok=True)
    else:
        shutil.rmtree(entry, ignore_errors=True)


def _of_the_disk(error: Exception) -> bool:
    """Also as torch has it, and tokenizers and safetensors, which are written in Rust and name the system's error."""
    return isinstance(error, (OSError, RuntimeError)) or "(os error " in str(error)
