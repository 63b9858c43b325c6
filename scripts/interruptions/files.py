"""What crashes do to files: tails torn off, pages of NULs, drafts that nobody finished."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHECKPOINT = re.compile(r"step-\d{6,}")
OF_THE_USER = (".draft-thesis", "checkpoints/step-best", "checkpoints/.draft-mine")


def run_folders(folder: Path) -> list[Path]:
    """The training runs in a folder: itself, or those of a study."""
    return sorted(folder.glob("runs/*/*")) if (folder / "runs").is_dir() else [folder]


def rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a jsonl file; ValueError if one is not JSON."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def steps_taken(run: Path) -> int:
    """The last step that metrics.jsonl has a whole line of."""
    found = 0
    if (run / "metrics.jsonl").exists():
        for line in (run / "metrics.jsonl").read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
                found = row["step"] if "train/loss" in row else found
            except (ValueError, KeyError, TypeError):  # torn
                continue
    return found


def lines_written(folder: Path) -> int:
    """Of metrics.jsonl, in all runs of a folder."""
    found = [run / "metrics.jsonl" for run in run_folders(folder)]
    return sum(file.read_bytes().count(b"\n") for file in found if file.exists())


def checkpoints(run: Path) -> list[Path]:
    """Folders named as checkpoints are, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(
        (each for each in found if CHECKPOINT.fullmatch(each.name)), key=lambda each: int(each.name.partition("-")[2])
    )


def is_whole(checkpoint: Path) -> bool:
    """True where every file has the size and the hash of the manifest."""
    try:
        entries = json.loads((checkpoint / "manifest.json").read_text())["files"]
        return all(
            hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == entry["sha256"]
            for name, entry in entries.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def newest_whole(run: Path) -> int:
    """The step of the newest whole checkpoint; 0 without one."""
    whole = [int(each.name.partition("-")[2]) for each in checkpoints(run) if is_whole(each)]
    return max(whole, default=0)


def _vouched(run: Path, name: str) -> int:
    """Bytes of a jsonl file that the newest whole checkpoint counts on."""
    whole = [each for each in checkpoints(run) if is_whole(each)]
    if not whole:
        return 0
    return json.loads((whole[-1] / "trainer.json").read_text())["log_offsets"][name.partition(".")[0]]


def _tear(run: Path, name: str, amount: float) -> str | None:
    """As after a power failure: what no checkpoint counts on ends anywhere, in half a line or in NULs."""
    file, vouched = run / name, _vouched(run, name)
    if not file.exists():
        return None
    data = file.read_bytes()
    if amount < 0.5 and len(data) > vouched:
        left = vouched + int(2 * amount * (len(data) - vouched))
        file.write_bytes(data[:left])
        return f"{len(data) - left} bytes cut off"
    half = b'{"step": 3, "time": 17956' if amount < 0.75 else b"\0" * 512
    file.write_bytes(data + half)
    return "half a line at its end" if amount < 0.75 else "512 NULs at its end"


def _cut_below(run: Path, name: str, amount: float) -> str | None:
    """More than a crash takes, as a file is flushed before a checkpoint counts on it: a disk's fault."""
    vouched = _vouched(run, name)
    if not vouched:
        return None
    left = int(amount * vouched)
    (run / name).write_bytes((run / name).read_bytes()[:left])
    return f"{left} of {vouched} bytes left"


def _damage(run: Path, how: str, amount: float) -> str | None:
    whole = [each for each in checkpoints(run) if is_whole(each)]
    if len(whole) < 2:  # the only one: nothing could be resumed
        return None
    files = sorted(each for each in whole[-1].rglob("*") if each.is_file())
    file = files[int(amount * len(files))]
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[: int(amount * len(data))])
    else:
        place = int(amount * len(data))
        file.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
    return f"{whole[-1].name}/{file.relative_to(whole[-1])} {how}"


def _lose(run: Path, name: str, how: str) -> str | None:
    file = run / name
    if not file.exists():
        return None
    size = file.stat().st_size
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(b"\0" * size if how == "NULs" else b"")
    return how


def _leave_drafts(run: Path, amount: float) -> str | None:
    """Under the names that drafts have: a checkpoint that is not finished, a final model, a file."""
    found = checkpoints(run)
    if not found:
        return None
    following = int(found[-1].name.partition("-")[2]) + 1
    owner = _owner(found[-1])
    of_run, of_file = (f".draft-{owner}-", ".draft-iwopd-") if owner else (".draft-", ".draft-")
    draft = run / "checkpoints" / f"{of_run}step-{following:06d}"
    shutil.copytree(found[-1], draft, dirs_exist_ok=True)
    (draft / "manifest.json").unlink(missing_ok=True)
    (run / f"{of_file}config.yaml").write_text("run: {")
    (run / f"{of_run}final").mkdir(exist_ok=True)
    return "a checkpoint's, final's and config.yaml's"


def _owner(checkpoint: Path) -> str | None:
    """The run's id, where its drafts carry one."""
    try:
        return json.loads((checkpoint / "manifest.json").read_text()).get("run")
    except (OSError, ValueError):
        return None


def _add_files_of_the_user(run: Path, amount: float) -> str | None:
    found = checkpoints(run)
    if not found:
        return None
    shutil.copytree(found[-1], run / "checkpoints" / "step-best", dirs_exist_ok=True)
    for name in (".draft-thesis", "checkpoints/.draft-mine"):
        (run / name).mkdir(exist_ok=True)
        (run / name / "text").write_text("mine\n")
    return "step-best, .draft-thesis, checkpoints/.draft-mine"


def tear(run: Path, kind: str, amount: float) -> str | None:
    """Do to the files of a run what `kind` (of `plan.FILES`) says; what was done, or None where nothing could be."""
    name, _, how = kind.partition(": ")
    acts: dict[str, Callable[[], str | None]] = {
        "torn tail": lambda: _tear(run, name, amount),
        "cut below the checkpoint": lambda: _cut_below(run, name, amount),
        "empty": lambda: _lose(run, name, "empty"),
        "NULs": lambda: _lose(run, name, "NULs"),
        "missing": lambda: _lose(run, name, "missing"),
        "a file cut": lambda: _damage(run, "cut", amount),
        "a file garbled": lambda: _damage(run, "garbled", amount),
        "a file missing": lambda: _damage(run, "missing", amount),
        "": lambda: _leave_drafts(run, amount) if name == "leftover drafts" else _add_files_of_the_user(run, amount),
    }
    return acts[how]()


def drafts(folder: Path) -> Iterator[Path]:
    """What is being written, or was left so; of the program, not the user's."""
    users = {folder / name for name in OF_THE_USER}
    for run in run_folders(folder):
        for place in (run, run / "checkpoints"):
            yield from (each for each in place.glob(".draft*") if each not in users)


def draft_marks(folder: Path) -> set[tuple[str, int]]:
    """Path and inode of each, which tell one from the next of the same name."""
    found = set[tuple[str, int]]()
    for each in drafts(folder):
        try:
            found.add((str(each), each.stat().st_ino))
        except OSError:  # finished in between
            continue
    return found
