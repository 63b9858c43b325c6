"""A run's folder, name and date; a folder that nobody named is made at once, so that no two runs share it."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from iwopd.config import Config, RunConfig
from iwopd.config.names import name_problem
from iwopd.errors import ConfigError, RunFolderError
from iwopd.parallel import world
from iwopd.runs.saved_config import saved_config

WITH_FOLDER = ("train", "eval", "ablate", "diagnose")  # the verbs that leave something in it

_claimed: list[Path] = []


def settle(config: Config, verb: str, job: int | None = None, *, claim: bool = False) -> None:
    """Fill in run.name, run.dir and run.date; each job of a sweep gets a folder of its own.

    Args:
        job: number of the sweep's job; None where there is no sweep.
        claim: make the folder, if it is one that nobody named; see `release`.

    Raises:
        ConfigError: run.resume without a run, or a name that cannot be a folder's.
    """
    run, now = config.run, datetime.now()
    if run.resume and run.dir is None and run.name is None:
        raise ConfigError("run.resume=true: which run? name it with run.dir=PATH (or run.name=NAME)")
    named = run.name or (Path(run.dir).name if run.dir else None)
    if run.dir:
        folder = Path(run.dir)
    elif run.name:
        if (problem := name_problem(run.name)) is not None:
            raise ConfigError(f"run.name={run.name}: {problem}, or name the folder with run.dir=PATH")
        folder = Path("runs") / run.name
    else:
        folder = _unused(Path("runs"), f"{verb}-{now:%Y-%m-%d_%H-%M-%S}", claim and verb in WITH_FOLDER)
    run.name = (named or folder.name) + ("" if job is None else f"-{job}")
    run.dir = str(folder if job is None else folder / str(job))
    if run.date is None:
        began = _date_of(Path(run.dir)) if run.resume or verb == "ablate" else None  # a study is always resumed
        run.date = began or now.isoformat(timespec="seconds")


def _date_of(folder: Path) -> str | None:
    """The date that the run in `folder` had; None where there is none that can be read."""
    try:
        return saved_config(folder)[0]["run"]["date"]
    except (RunFolderError, OSError, ValueError, KeyError, TypeError):
        return None


def _unused(parent: Path, name: str, claim: bool) -> Path:
    """`name`, or the first of name-2, name-3, … that is not there."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        number += 1
        try:
            if not claim:
                if folder.exists():
                    continue
            else:
                made = [folder] if parent.exists() else [parent, folder]
                folder.mkdir(parents=True)  # one of several processes succeeds, on a shared disk too
                _claimed.extend(made)
        except FileExistsError:
            if folder.exists():
                continue  # else runs is a file
        except OSError:  # reported by the check of the folder, which knows more reasons
            pass
        return folder


def agree(run: RunConfig) -> None:
    """Of several processes, all get the folder, name and date that the leader settled: clocks differ."""
    run.dir, run.name, run.date = world().alone(lambda: (run.dir, run.name, run.date))


def release() -> None:
    """Take away the folders that were made for a run which did not begin."""
    while _claimed:
        with suppress(OSError):  # it is in use
            _claimed.pop().rmdir()
