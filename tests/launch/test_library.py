"""`from iwopd import distil`: the program's trainings, settings and errors, from Python."""

import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from support.composing import composed
from support.running import ONE_THREAD, SMALL, iwopd, rows, weights, without_times

from iwopd import Distilled, distil, numerics
from iwopd.errors import ConfigError, IwopdError, ModelError, RunFolderError
from iwopd.launch.library import as_overrides

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("smoke_models")]
ONE_STEP = (*SMALL, "run.steps=1", "run.samples=0", "run.save_every=0", "eval.greedy=false")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    folder = tmp_path_factory.mktemp("library") / "run"
    return distil(*ONE_STEP, {"run.dir": folder, "optim": {"lr": 1e-3}}, weighting="first30")


def test_it_is_the_run_of_the_command_line(found: Distilled, tmp_path: Path) -> None:
    told = (*ONE_STEP, "optim.lr=1e-3", "weighting=first30", f"run.dir={tmp_path / 'run'}")
    assert iwopd("train", *told) == 0
    assert found.model == found.folder / "final"
    assert weights(found.model) == weights(tmp_path / "run" / "final")
    assert without_times(list(found.metrics)) == without_times(rows(tmp_path / "run" / "metrics.jsonl"))


def test_what_it_returns(found: Distilled) -> None:
    assert found.series("train/loss").keys() == {1}
    accuracies = found.series("eval/accuracy")
    assert accuracies.keys() == {0, 1}
    assert found.accuracy == accuracies[1]
    assert found.series("no/such") == {}
    assert Distilled(found.folder, None, ()).accuracy is None


def test_every_way_to_write_settings_means_the_same() -> None:
    wanted = ["++optim.lr=0.001", "weighting=first30", "++data.batch_size=4"]
    assert list(as_overrides([{"optim.lr": 1e-3, "weighting": "first30", "data": {"batch_size": 4}}])) == wanted
    given = list(as_overrides(["optim.lr=1e-3", {"benchmark": [], "experiment": "smoke", "run": {"name": "it's"}}]))
    assert given == ["optim.lr=1e-3", "benchmark=[]", "+experiment=smoke", r"++run.name='it\'s'"]
    config = composed(*given, *as_overrides([{"optim.betas": (0.8, 0.9), "data.path": Path("x y")}]))
    assert (config.optim.betas, config.run.name, config.data.path) == ([0.8, 0.9], "it's", "x y")


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"weighting": "iww"}, ConfigError, "weighting=iww: no such preset; did you mean iw?"),
        ({"optim.lrr": 1}, ConfigError, "optim.lrr: no such key; did you mean optim.lr?"),
        ({"optim": {"lr": -1}, "loss": {"normalize": "none"}}, ConfigError, "optim.lr=-1.0: must be above 0"),
        ({"experiment": "smoke", "student.path": "/none"}, ModelError, "student.path=/none: does not exist"),
        ({"run.resume": True}, ConfigError, "which run?"),
    ],
)
def test_a_mistake_is_an_error_and_no_exit(settings: dict[str, object], kind: type[IwopdError], says: str) -> None:
    with pytest.raises(kind) as caught:
        distil(settings)
    assert says in str(caught.value)


def test_a_folder_that_holds_a_run_is_refused(found: Distilled) -> None:
    with pytest.raises(RunFolderError, match=r"run\.resume=true"):
        distil(*ONE_STEP, {"run.dir": found.folder, "optim.lr": 1e-3}, weighting="first30")


def test_a_run_that_collapses_has_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("iwopd.training.loop.alarm", lambda *given: "responses stop ending")
    found = distil(*SMALL, {"run.dir": tmp_path / "run", "run.on_collapse": "stop", "eval.every": 0})
    assert found.model is None
    assert list(found.series("train/loss")) == [1]


def test_ctrl_c_saves_and_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pressing.py").write_text(
        "import os, signal\ncalls = []\n\ndef weights(given):\n    calls.append(given)\n"
        "    if len(calls) == 4:\n        os.kill(os.getpid(), signal.SIGINT)\n    return 1.0 * given.mask\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        distil(*SMALL, {"run.dir": "run", "run.steps": 9, "eval.every": 0, "run.save_every": 0}, weighting="custom",
               **{"weighting.path": "pressing:weights"})  # fmt: skip
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


def test_in_a_thread(tmp_path: Path) -> None:
    found = []
    thread = Thread(target=lambda: found.append(distil(*ONE_STEP, {"run.dir": tmp_path / "run", "eval.every": 0})))
    thread.start()
    thread.join()
    assert found[0].model.is_dir()


def test_importing_it_costs_nothing() -> None:
    code = (
        "import sys, iwopd; assert not {'torch', 'hydra', 'omegaconf', 'numpy'} & {*sys.modules}; "
        "iwopd.distil; iwopd.numerics; assert 'torch' not in sys.modules; assert iwopd.numerics.iw_weights"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ONE_THREAD)


@pytest.mark.unit
def test_formulas_are_there_by_name() -> None:
    assert numerics.iw_weights is not None
