"""TensorBoard, MLflow and Trackio, the real libraries writing here: what they hold, also of a resumed run."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.running import SMALL, iwopd, refused, rows

from iwopd.preflight import packages

os.environ["TRACKIO_DIR"] = tempfile.mkdtemp()  # which Trackio reads when it is imported

# Threads of these libraries meet each other's deprecations.
pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
ALL = ("tracking=[tensorboard,mlflow,trackio]", "tracking.project=tests", "run.keep=0", "weighting=first30")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, smoke_models: dict[str, Path]) -> Iterator[Path]:
    """A run of 4 steps that lost its last checkpoint, and took its last two steps again."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert iwopd("train", *SMALL, *ALL, f"run.dir={folder}") == 0
        shutil.rmtree(folder / "final")
        shutil.rmtree(folder / "checkpoints" / "step-000004")
        assert iwopd("train", *SMALL, *ALL, f"run.dir={folder}", "run.resume=true", "run.save_every=1") == 0
        assert "stopped working" not in (folder / "train.log").read_text()
        yield folder


def truth(folder: Path, key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows(folder / "metrics.jsonl") if key in row]


def same(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> None:
    assert [step for step, _ in found] == [step for step, _ in wanted]
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted])


KEYS = ("train/loss", "eval/accuracy", "tokens/generated")


@pytest.mark.parametrize("key", KEYS)
def test_tensorboard_has_every_step_once(resumed: Path, key: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(resumed / "tensorboard"), {"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars(key)]
    same(found, truth(resumed, key))
    assert len(events.Images("samples/by_position")) == 3
    assert len(events.Tensors("samples/0/text_summary")) == 3


@pytest.mark.parametrize("key", KEYS)
def test_mlflow_has_one_run_with_every_step_once(resumed: Path, key: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{resumed.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    [run] = client.search_runs([experiment.experiment_id])
    found = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, key)]
    same(sorted(found), truth(resumed, key))
    assert run.data.params["weighting.fraction"] == "0.3"
    assert run.info.status == "FINISHED"
    names = {each.path for each in client.list_artifacts(run.info.run_id, "samples")}
    assert {f"samples/step-{step:06d}.{kind}" for step in (0, 2, 4) for kind in ("json", "html", "png")} == names


@pytest.mark.parametrize("key", KEYS)
def test_trackio_has_one_run_with_every_step_once(resumed: Path, key: str) -> None:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    [run] = trackio.Api().runs("tests")
    logged = SQLiteStorage.get_logs("tests", run.name, run_id=run.id)
    same([(row["step"], row[key]) for row in logged if key in row], truth(resumed, key))
    assert run.config["weighting"]["fraction"] == 0.3
    tables = [row["samples"]["_value"] for row in logged if "samples" in row]
    assert [len(table) for table in tables] == [2, 2, 2]


def test_a_tracker_that_joins_later_gets_what_was_before(resumed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert iwopd("train", *SMALL, "weighting=first30", "run.steps=1", f"run.dir={folder}") == 0
    again = ("tracking=tensorboard", f"run.dir={folder}", "run.resume=true")
    assert iwopd("train", *SMALL, "weighting=first30", "run.steps=1", *again) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/accuracy")] == [0, 1]
    assert [event.step for event in events.Scalars("train/loss")] == [1]
    assert len(events.Images("samples/by_position")) == 2


@pytest.mark.cli
@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow", "trackio"])
def test_one_that_is_not_installed_is_refused_before_anything_loads(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda package: None if package == name else object())
    said = refused(capsys, "train", "+experiment=smoke", f"tracking=[none,{name}]")
    assert said == f"iwopd: tracking={name}: {name} is not installed; pip install 'iwopd[{name}]'"


@pytest.mark.cli
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tracking.project=a", "tracking.project=a: no such key; choose tracking=wandb or tracking=mlflow"),
        ("tracking=wandb tracking.uri=x", "tracking.uri=x: no such key; choose tracking=mlflow, which has it"),
        ("tracking=[wandb,mlfow]", "tracking=mlfow: no such preset; did you mean mlflow?"),
        ("tracking=wandb,mlflow", "write tracking=[wandb,mlflow] for all at once"),
        ("tracking=trackio tracking.project=a/b", "tracking.project=a/b: Trackio makes a file of that name"),
        ("tracking=mlflow tracking.project=''", "MLflow needs a name for the experiment"),
    ],
)
def test_bad_settings_are_refused(given: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "train", "+experiment=smoke", *given.split())


@pytest.mark.unit
def test_the_figure_shows_what_the_responses_have() -> None:
    from iwopd.tracking import samples

    made = [
        {"tokens": list("abcd"), "start": 1, "weights": [1.0, 2.0], "advantages": [-3.0, 1.0]},
        {"tokens": list("ab"), "start": 0, "weights": [1.0, 1.0], "advantages": [0.5, -0.5]},
    ]
    assert samples.by_position(made, "weights") == [0.5, 1.0, 2.0]
    assert samples.by_position(made, "advantages") == [0.25, 1.75, 1.0]
    image = samples.figure(made)
    assert image is not None
    assert image.shape == (300, 700, 3)
    assert image.dtype == np.uint8
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10, "lines in two colours"
    assert samples.by_position([], "weights") == []
