"""`iwopd report`: which runs it takes, where the page goes, and what it refuses before anything loads."""

import os
from pathlib import Path

import pytest
from support.report_runs import written_run
from support.running import iwopd, refused

pytestmark = pytest.mark.cli


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return written_run(tmp_path / "runs" / "a")


def test_one_run_gets_its_page_and_several_get_one_together(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert iwopd("report", "runs/a") == 0
    assert capsys.readouterr().out.strip() == "report: runs/a/report.html"
    assert "<title>a</title>" in (run / "report.html").read_text()
    written_run(run.parent / "b", seed=1)
    assert iwopd("report", "runs/a", "runs/b") == 0
    assert "<title>2 runs compared</title>" in Path("report.html").read_text()
    assert iwopd("report", "runs/b", "report.output=elsewhere.html") == 0
    assert "<title>b</title>" in Path("elsewhere.html").read_text()
    assert not (run.parent / "b" / "report.html").exists()


def test_any_folder_may_be_named(run: Path) -> None:
    odd = run.rename(run.with_name("lr=1e-5, [x]'s"))
    assert iwopd("report", str(odd)) == 0
    assert (odd / "report.html").exists()
    assert iwopd("report", os.path.relpath(odd)) == 0
    assert iwopd("report", f"{odd}/") == 0


def test_a_page_is_replaced_and_nothing_else_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert iwopd("report", "runs/a") == 0
    assert iwopd("report", "runs/a") == 0
    Path("notes.html").write_text("mine")
    said = refused(capsys, "report", "runs/a", "report.output=notes.html")
    assert said == "iwopd: report.output=notes.html: exists already and is no report of runs; name another file"
    assert Path("notes.html").read_text() == "mine"


def test_what_is_no_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "empty").mkdir()
    other = written_run(run.parent / "eval")
    (other / "config.yaml").write_text((run / "config.yaml").read_text().replace("verb: train", "verb: eval"))
    for given, said in (
        ([], "report.runs=[]: which run? name its folder, e.g. iwopd report runs/NAME"),
        (["runs/c"], "report.runs=runs/c: no such folder; name that of a run, e.g. runs/NAME"),
        (["runs/a", "runs/empty"], "report.runs=runs/empty: holds no run; name the folder of one, e.g. runs/NAME"),
        (["runs/eval"], "report.runs=runs/eval: is a run of iwopd eval; name a training run"),
        (["runs/a", "runs/../runs/a"], "report.runs=runs/a: is named twice; name each run once"),
        (["runs/a", "report.output=runs"], "report.output=runs: is a folder; name a file in a folder that exists"),
        (["runs/a", "report.output=x/y.html"], "report.output=x/y.html: there is no folder x; name a file in a folder"),
        (["runs/a", "report.outptu=3"], "report.outptu=3: no such key; did you mean report.output?"),
    ):
        assert refused(capsys, "report", *given).startswith(f"iwopd: {said}")
    assert not (run / "report.html").exists()
