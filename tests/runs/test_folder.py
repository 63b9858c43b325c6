"""What a run's folder holds survives crashes, copies and strangers: without models, in milliseconds."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from iwopd.errors import RunFolderError
from iwopd.runs.files import read_rows
from iwopd.runs.folder import RunFolder
from iwopd.runs.saved_config import saved_config
from iwopd.runs.tracking import JsonLines, Tracker

CONFIG = {"verb": "train", "run": {"steps": 9, "date": "2026-01-31"}, "optim": {"lr": 1e-4}, "seed": 1}
NUL = "\0" * 60


def opened(path: Path, config: dict | None = None, **options: bool) -> RunFolder:
    return RunFolder(path, config or CONFIG, **({"resume": True} | options))


def fill(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(f"weights of step {step}")
        (folder / "trainer.json").write_text(json.dumps({"step": step, "tokens": step}))

    return write


def begun(path: Path, *steps: int, keep: int = 0) -> Path:
    """A run with checkpoints of these steps."""
    with opened(path, resume=False) as folder:
        Tracker(path).log(0, {"eval/accuracy": 0.5})
        for step in steps:
            folder.save_checkpoint(step, fill(step), keep)
    return path


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in (path / "checkpoints").iterdir())


# ---------------------------------------------------------------------------------------------- config.yaml


def broken(file: Path, how: str) -> None:
    text = file.read_text()
    file.unlink()
    match how:
        case "folder":
            file.mkdir()
        case "missing":
            pass
        case _:
            file.write_text({"empty": "", "NULs": NUL, "cut": text[: len(text) // 2], "list": "- 1\n"}[how])


@pytest.mark.parametrize("how", ["empty", "NULs", "missing", "cut", "list"])
def test_a_lost_config_is_taken_from_the_newest_whole_checkpoint(how: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2, 4)
    broken(run / "config.yaml", how)
    with pytest.raises(RunFolderError, match=r"optim\.lr \(there 0\.0001, here 1\)"):
        opened(run, CONFIG | {"optim": {"lr": 1}}).check()
    assert saved_config(run)[0] == CONFIG
    with opened(run) as folder:
        assert folder.last_checkpoint() == run / "checkpoints" / "step-000004"
    assert yaml.safe_load((run / "config.yaml").read_text()) == CONFIG
    assert saved_config(run)[1] == run / "config.yaml"


def test_a_lost_config_without_a_checkpoint_is_one_line_and_nothing_is_touched(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    broken(run / "config.yaml", "cut")
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    with (
        pytest.raises(RunFolderError, match=r"config\.yaml cannot be read, .* has a copy"),
        opened(run),
    ):
        pass
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_a_config_that_is_a_folder_is_named(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2)
    broken(run / "config.yaml", "folder")
    with (
        pytest.raises(RunFolderError, match=r"config\.yaml: cannot be written \(Is a directory\); move away"),
        opened(run),
    ):
        pass


@pytest.mark.parametrize("content", ["", NUL, "[]", '{"a'])
def test_a_damaged_about_is_written_anew(content: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2)
    (run / "about.json").write_text(content)
    with opened(run):
        assert json.loads((run / "about.json").read_text())["versions"]


def test_a_full_disk_leaves_small_files_as_they_were(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2)
    before = (run / "config.yaml").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with opened(run) as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            with pytest.raises(RunFolderError, match=r"File too large\); make room, then run\.resume=true"):
                folder.record()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
    assert (run / "config.yaml").read_bytes() == before
    assert not list(run.glob(".draft-*"))


def test_what_matters_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the system's calls: fsync of each file before the rename that shows it, and metrics first of all."""
    calls: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename
    replace = os.replace

    def flushed(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def shown(how: Callable[..., None]) -> Callable[..., None]:
        def move(source: Path, target: Path) -> None:
            calls.append(("rename", Path(target).name))
            how(source, target)

        return move

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", shown(rename))
    monkeypatch.setattr(os, "replace", shown(replace))
    run = tmp_path / "run"
    with opened(run, resume=False) as folder:
        tracker = Tracker(run)
        tracker.log(1, {"a": 1})

        def write(draft: Path) -> None:
            fill(1)(draft)
            (draft / "trainer.json").write_text(json.dumps(tracker.state))

        folder.save_checkpoint(1, write, 0)
    for name in ("config.yaml", "about.json"):
        assert calls.index(("fsync", f".draft-iwopd-{name}")) < calls.index(("rename", name))
    published = calls.index(("rename", "step-000001"))
    for name in ("metrics.jsonl", "samples.jsonl", "trainer.json", "config.yaml", "manifest.json", "weights", "model"):
        assert ("fsync", name) in calls[:published], name
    assert ("fsync", "checkpoints") in calls[published:]


# ---------------------------------------------------------------------------------------------- checkpoints


def test_only_exact_names_of_this_run_count_by_number(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2, 10)
    other = begun(tmp_path / "other", 12)
    here = run / "checkpoints"
    for copy in ("step-best", "step-7", "step-0000011", "step-000010.bak", "step-000011", "Step-000013", "step-٠٠٠٠١٢"):
        shutil.copytree(here / "step-000010", here / copy)
    shutil.copytree(other / "checkpoints" / "step-000012", here / "step-000012")
    (here / "step-000014").write_text("a file")
    before = names(run)
    with opened(run) as folder:
        assert folder.last_checkpoint() == here / "step-000010"
        assert folder.saved() == [here / "step-000002", here / "step-000010"]
        folder.save_checkpoint(999_999, fill(999_999), keep=2)
        folder.save_checkpoint(1_000_000, fill(1_000_000), keep=2)
        assert folder.last_checkpoint() == here / "step-1000000"
    kept = set(before) - {"step-000002", "step-000010"}
    assert names(run) == sorted(kept | {"step-999999", "step-1000000"})


@pytest.mark.parametrize("flaw", ["bit", "missing", "NULs"])
def test_damaged_checkpoints_hold_no_place(flaw: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2, 4, 6)
    file = run / "checkpoints" / "step-000004" / ("trainer.json" if flaw == "NULs" else "model/weights")
    size = file.stat().st_size
    file.unlink() if flaw == "missing" else file.write_bytes((b"\0" if flaw == "NULs" else b"x") * size)
    with opened(run) as folder:
        assert folder.last_checkpoint() == run / "checkpoints" / "step-000006"
        folder.save_checkpoint(8, fill(8), keep=3)
        assert names(run) == ["step-000002", "step-000004", "step-000006", "step-000008"]
        folder.save_checkpoint(10, fill(10), keep=3)
        assert names(run) == ["step-000006", "step-000008", "step-000010"]


def test_a_stranger_gives_up_the_name_that_a_checkpoint_needs_and_keeps_its_contents(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2)
    mine = run / "checkpoints" / "step-000004"
    mine.mkdir()
    (mine / "notes").write_text("mine")
    with opened(run) as folder:
        assert folder.last_checkpoint() == run / "checkpoints" / "step-000002"
        folder.save_checkpoint(4, fill(4), keep=1)
        assert folder.last_checkpoint() == mine
    assert (run / "checkpoints" / "step-000004.set-aside-1" / "notes").read_text() == "mine"


def test_a_final_that_is_not_ours_is_refused_and_stays(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2)
    (run / "final").mkdir()
    (run / "final" / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match="was not written by this run"):
        opened(run).check()
    (run / "final").rename(run / "elsewhere")
    with opened(run) as folder:
        (run / "elsewhere").rename(run / "final")
        with pytest.raises(RunFolderError, match="was not written by this run"):
            folder.save_final(fill(2), 2)
    assert (run / "final" / "thesis.tex").read_text() == "mine"


def test_only_this_runs_drafts_are_cleared(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2)
    with opened(run) as folder:
        own = f".draft-{folder.checkpoints.id}-step-000004"
    for place in (run, run / "checkpoints"):
        for name in (".draft-thesis", ".draft-0123456789ab-step-000004", own):
            (place / name).mkdir()
            (place / name / "a").write_text("a")
    (run / ".draft-iwopd-config.yaml").write_text("half")
    with opened(run):
        pass
    for place in (run, run / "checkpoints"):
        assert [entry.name for entry in sorted(place.glob(".draft-*"))] == [
            ".draft-0123456789ab-step-000004",
            ".draft-thesis",
        ]


def test_a_copy_without_hidden_files_is_the_same_run(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2)
    (run / ".run-id").unlink()
    with opened(run) as folder:
        assert folder.last_checkpoint() is not None
        assert (run / ".run-id").read_text().strip() == folder.checkpoints.id


def test_a_bug_while_saving_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise ValueError("a bug")

    with opened(begun(tmp_path / "run", 2)) as folder, pytest.raises(ValueError, match="a bug"):
        folder.save_checkpoint(4, write, 0)
    assert names(tmp_path / "run") == ["step-000002"]


# ---------------------------------------------------------------------------------------------- metrics.jsonl


@pytest.mark.parametrize(
    "tail", [b"", b'{"step": 2, "tex', '{"text": "é'.encode()[:-1], b"\0" * 40, b"\0" * 40 + b"\n"]
)
def test_what_a_crash_left_of_the_metrics_is_cut_to_whole_lines(tail: bytes, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.log(1, {"a": 1})
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    tracker.log(2, {"a": 2})
    vouched = tracker.state
    file.write_bytes(whole + tail)
    Tracker(tmp_path, vouched).log(3, {"a": 3})
    assert [json.loads(line)["step"] for line in file.read_bytes().splitlines()] == [1, 3]


def test_rows_that_took_the_place_of_lost_ones_are_cut(tmp_path: Path) -> None:
    """A file that is shorter than the checkpoint counts on, and to which a session killed since then has added."""
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 8, 9)))
    JsonLines(file, 1000, step=7)
    assert [row["step"] for row in read_rows(file)] == [1, 2, 3]


@pytest.mark.parametrize(
    "error", [Exception("No space left on device (os error 28)"), RuntimeError("unexpected pos 64")]
)
def test_a_full_disk_is_one_line_whichever_library_meets_it(error: Exception, tmp_path: Path) -> None:
    def full(draft: Path) -> None:
        raise error

    with RunFolder(tmp_path / "run", {"verb": "train"}) as folder, pytest.raises(RunFolderError, match="make room"):
        folder.save_checkpoint(1, full, keep=0)
    with RunFolder(tmp_path / "run2", {"verb": "train"}) as folder, pytest.raises(ZeroDivisionError):
        folder.save_checkpoint(1, lambda draft: print(1 / 0), keep=0)
