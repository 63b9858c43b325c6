"""`iwopd report runs/NAME …`: report.html of a training run, or of several beside each other."""

from pathlib import Path

from iwopd.config import Config
from iwopd.errors import ConfigError, RunFolderError
from iwopd.report.run_page import MADE_BY
from iwopd.runs.console import Display
from iwopd.runs.saved_config import saved_config

HEAD = 2**16  # bytes of a page in which it says what made it


def run(config: Config) -> None:
    """Write the page, and say where it is.

    The runs may be under way, interrupted or without any evaluation; nothing of them is changed.

    Raises:
        ConfigError: no run is named, or what is named is none.
        RunFolderError: the page cannot be written.
    """
    folders = [Path(folder).expanduser() for folder in config.report.runs]
    _check_runs(folders)
    output = _output(config, folders)
    from iwopd.training.report import write  # torch takes 5 s; errors so far came at once

    with Display() as display:
        write(folders, output)
        display.line(f"report: {output}")


def _check_runs(folders: list[Path]) -> None:
    if not folders:
        raise ConfigError("report.runs=[]: which run? name its folder, e.g. iwopd report runs/NAME")
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"report.runs={folder}: no such folder; name that of a run, e.g. runs/NAME")
        try:
            verb = saved_config(folder)[0]["verb"]
        except (RunFolderError, KeyError):
            raise ConfigError(f"report.runs={folder}: holds no run; name the folder of one, e.g. runs/NAME") from None
        if verb != "train":
            raise ConfigError(f"report.runs={folder}: is a run of iwopd {verb}; name a training run")
    twice = next((folder for folder in folders if [f.resolve() for f in folders].count(folder.resolve()) > 1), None)
    if twice is not None:
        raise ConfigError(f"report.runs={twice}: is named twice; name each run once")


def _output(config: Config, folders: list[Path]) -> Path:
    """The file to write, which is another page of ours, or not there yet."""
    given = config.report.output
    file = Path(given) if given else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if file.is_dir() or not file.parent.is_dir():
        reason = "is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise ConfigError(f"report.output={file}: {reason}; name a file in a folder that exists")
    try:
        with file.open("rb") as stream:
            ours = f'content="{MADE_BY}"'.encode() in stream.read(HEAD)
    except FileNotFoundError:
        return file
    except OSError as error:
        raise ConfigError(f"report.output={file}: cannot be read ({error.strerror}); name another file") from error
    if not ours:
        raise ConfigError(f"report.output={file}: exists already and is no report of runs; name another file")
    return file
