"""What made a run: every session is recorded, other versions are told, another schema is refused in one line."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from support.running import SMALL, iwopd, refused
from torch.distributed.checkpoint.state_dict_saver import save

from iwopd.config.stored import SCHEMA
from iwopd.runs import about
from iwopd.runs.files import sha256

pytestmark = pytest.mark.process

RUN = (*SMALL, "run.steps=2", "eval.every=0", "benchmark=[]", "run.save_every=1", "run.keep=0")
RUN = tuple(setting for setting in RUN if not setting.startswith("eval."))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, smoke_models: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert iwopd("train", *RUN, f"run.dir={folder}") == 0
    return folder


@pytest.fixture
def half(finished: Path, tmp_path: Path) -> Path:
    """The run as if it had been stopped after one step."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step-000002")
    return folder


def change(file: Path, edit: Callable[[dict], None]) -> None:
    held = yaml.safe_load(file.read_text())
    edit(held)
    file.write_text(yaml.safe_dump(held, explicit_end=True) if file.suffix == ".yaml" else json.dumps(held))


def reseal(checkpoint: Path) -> None:
    """The manifest of a checkpoint as it is now, as another iwopd would have written it."""

    def edit(held: dict) -> None:
        for name in held["files"]:
            file = checkpoint / name
            held["files"][name] = {"size": file.stat().st_size, "sha256": sha256(file)}

    change(checkpoint / "manifest.json", edit)


def test_every_session_is_recorded_and_other_versions_are_reported(
    half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def older(held: dict) -> None:
        [began] = held["sessions"]
        assert began["command"] == held["command"]
        began["versions"] |= {"transformers": "4.0", "peft": None}
        began["versions"].pop("torch")

    change(half / "about.json", older)
    assert iwopd("train", *RUN, f"run.dir={half}", "run.resume=true") == 0
    said = (half / "train.log").read_text()
    [line] = [each for each in said.splitlines() if "not what this run was last trained with" in each]
    assert "transformers 4.0 → 5." in line
    assert "torch none → 2." in line
    assert "datasets" not in line
    held = json.loads((half / "about.json").read_text())
    assert [each["command"][-1] for each in held["sessions"]] == [held["command"][-1], "run.resume=true"]
    assert all(each["host"] and each["process"] and each["began"] for each in held["sessions"])
    assert iwopd("train", *RUN, f"run.dir={half}", "run.resume=true") == 0
    assert len(json.loads((half / "about.json").read_text())["sessions"]) == 3
    assert (half / "train.log").read_text().count("not what this run was last") == 1, "told once"


def test_of_about_json_that_cannot_be_read_nothing_is_said(tmp_path: Path) -> None:
    assert about.version_changes(tmp_path) is None
    (tmp_path / "about.json").write_text("{")
    assert about.version_changes(tmp_path) is None
    before = {"command": ["iwopd train"], "python": "3.11.0", "versions": {"torch": "2.12"}}
    (tmp_path / "about.json").write_text(json.dumps(about.resumed(before)))
    assert "torch 2.12 → " in str(about.version_changes(tmp_path)), "of a run from before there were sessions"


@pytest.mark.parametrize(
    "edit",
    [
        lambda held: held.pop("schema"),
        lambda held: held.update(schema=SCHEMA - 1, policy_version=3),
        lambda held: held.pop("evaluated"),
        lambda held: held.update(unheard_of=1),
        lambda held: (held.clear(), held.update(schema=SCHEMA)),
    ],
)
def test_a_checkpoint_of_another_schema_is_one_line(edit: Callable, half: Path, capsys) -> None:
    checkpoint = half / "checkpoints" / "step-000001"
    change(checkpoint / "trainer.json", edit)
    reseal(checkpoint)
    said = refused(capsys, "train", *RUN, f"run.dir={half}", "run.resume=true")
    assert "trainer.json: is of schema " in said
    assert f"this iwopd has schema {SCHEMA}; resume the run with the iwopd that began it" in said


def test_an_optimiser_of_another_schema_is_one_line(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = half / "checkpoints" / "step-000001"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        save({"adam": {"step": torch.zeros(1)}}, checkpoint_id=checkpoint / "optimizer", no_dist=True)
    reseal(checkpoint)
    said = refused(capsys, "train", *RUN, f"run.dir={half}", "run.resume=true")
    assert "optimizer: is no state of this student's optimiser" in said


def test_a_run_of_another_schema_is_one_line(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(half / "config.yaml", lambda held: held.update(schema=SCHEMA - 1, rollout={"engine": "hf"}))
    said = refused(capsys, "train", *RUN, f"run.dir={half}", "run.resume=true")
    assert f"holds a run of config schema {SCHEMA - 1} (iwopd 0.1.0), and this iwopd has schema {SCHEMA}" in said
