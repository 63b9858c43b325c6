"""Training without any benchmark, and what doctor counts then; everything else says that it needs one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from support.composing import composed
from support.running import SMALL, iwopd, refused, rows, weights, without_times

from iwopd.doctor.lengths import steps_in_words

pytestmark = [pytest.mark.cli, pytest.mark.usefixtures("smoke_models")]

PLAIN = tuple(setting for setting in SMALL if "benchmarks" not in setting)


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unmeasured") / "run"
    assert iwopd("train", *PLAIN, "benchmark=[]", f"run.dir={folder}") == 0
    return folder


@pytest.mark.process
def test_a_run_without_a_benchmark_trains_and_says_so(unmeasured: Path, tmp_path: Path) -> None:
    found = rows(unmeasured / "metrics.jsonl")
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert not [key for row in found for key in row if key.startswith(("eval/", "time/eval"))]
    assert "not evaluated, for there is no benchmark; 4 steps" in (unmeasured / "train.log").read_text()
    card = ModelCard.load(unmeasured / "final" / "README.md")
    assert "Not evaluated." in card.text
    assert card.data.eval_results is None
    assert iwopd("train", *SMALL, f"run.dir={tmp_path / 'run'}") == 0
    assert weights(unmeasured / "final") == weights(tmp_path / "run" / "final"), "evaluations change nothing"


@pytest.mark.process
def test_a_run_without_a_benchmark_resumes_exactly(unmeasured: Path, tmp_path: Path) -> None:
    half = shutil.copytree(unmeasured, tmp_path / "half")
    shutil.rmtree(half / "final")
    shutil.rmtree(half / "checkpoints" / "step-000004")
    assert iwopd("train", *PLAIN, "benchmark=[]", f"run.dir={half}", "run.resume=true") == 0
    assert weights(half / "final") == weights(unmeasured / "final")
    assert without_times(rows(half / "metrics.jsonl")) == without_times(rows(unmeasured / "metrics.jsonl"))


@pytest.mark.process
@pytest.mark.parametrize(
    "none", ["eval.benchmarks=[]", "eval.benchmarks={}", "eval.benchmarks=null", "~eval.benchmarks", "benchmark=null"]
)
def test_every_way_to_write_that_there_is_none(none: str, tmp_path: Path) -> None:
    assert iwopd("train", *PLAIN, none, "run.steps=0", f"run.dir={tmp_path / 'run'}") == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["eval"]["benchmarks"] == {}


@pytest.mark.parametrize("value", ["[smoke]", "smoke", "3"])
def test_benchmarks_are_chosen_by_name(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "train", *PLAIN, f"eval.benchmarks={value}", f"run.dir={tmp_path / 'run'}")
    assert f"eval.benchmarks={value}: benchmarks are chosen by name; write benchmark=[NAME,…]" in line


@pytest.mark.parametrize(
    ("verb", "settings", "says"),
    [
        ("eval", ["eval.model=toy://smoke/student"], "nothing to evaluate on; choose one"),
        ("diagnose", [], "no prompts to diagnose on"),
        ("ablate", [], "a study compares accuracies"),
        ("train", ["weighting=first30_horizon"], "rollout.horizon=0.3: is a share of the mean length"),
        ("train", ["weighting=growing_horizon", "run.resume=true"], "or give the horizon in tokens"),
    ],
)
def test_what_needs_a_benchmark_says_so(
    verb: str, settings: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for none in ("benchmark=[]", "eval.benchmarks=[]"):
        assert says in refused(capsys, verb, *PLAIN, *settings, none, f"run.dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_an_arm_without_a_benchmark_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = "ablate.arms=[uniform,{name: blind, weighting: iw, benchmark: []}]"
    assert "ablate.arms=blind: benchmark=[]" in refused(capsys, "ablate", *PLAIN, arms, f"run.dir={tmp_path / 'run'}")


@pytest.mark.process
def test_a_horizon_in_tokens_needs_no_benchmark(tmp_path: Path) -> None:
    settings = (*PLAIN, "benchmark=[]", "rollout.horizon=5", "run.steps=1", f"run.dir={tmp_path / 'run'}")
    assert iwopd("train", *settings) == 0
    assert rows(tmp_path / "run" / "metrics.jsonl")[0]["train/horizon"] == 5


# ---------------------------------------------------------------------------------------------- what doctor counts

Examined = Callable[..., tuple[int, dict]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examined:
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> tuple[int, dict]:
        status = iwopd("doctor", *PLAIN, "doctor.live=false", f"doctor.json={tmp_path / 'd.json'}", *overrides)
        return status, json.loads((tmp_path / "d.json").read_text())

    return run


def findings(report: dict) -> str:
    return " ".join(finding["text"] for section in report["sections"] for finding in section["findings"])


@pytest.mark.process
def test_doctor_without_a_benchmark(doctor: Examined) -> None:
    status, report = doctor("benchmark=[]")
    assert status == 0
    assert report["costs"]["evaluations"] == 0
    assert report["costs"]["evaluation"]["tokens"] == 0
    assert "no evaluations, for there is no benchmark" in findings(report)


@pytest.mark.process
def test_doctor_with_a_budget_counts_what_the_run_does(doctor: Examined) -> None:
    _, report = doctor("run.tokens=2000", "doctor.response_tokens=10", "eval.every=2", "run.save_every=4", "run.keep=0")
    assert report["costs"]["steps"] == 25  # of 8 × 10 tokens
    assert report["costs"]["evaluations"] == 14  # at 0, 2, …, 24, 25
    assert "2,000 tokens (run.tokens), which are about 25 steps" in findings(report)
    assert "7 checkpoints ×" in findings(report)  # at 4, 8, …, 24, 25
    assert "at least 11 steps" in steps_in_words(composed(*SMALL, "run.tokens=2000"))  # of 8 × 24 tokens at most
    assert steps_in_words(composed(*SMALL)) == "4 steps"
