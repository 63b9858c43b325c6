"""Weights in several files, as those of every student with more than 2 GiB of them."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.running import SMALL, iwopd, refused
from torch import Tensor

from iwopd.models import saved

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("smoke_models")]
SETTINGS = (*SMALL, "eval.every=0", "eval.greedy=false", "run.samples=0")


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


def test_a_run_saves_them_resumes_and_ends_as_with_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert iwopd("train", *SETTINGS, f"run.dir={tmp_path / 'one'}") == 0
    monkeypatch.setattr(saved, "FILE_BYTES", 2**16)
    folder = tmp_path / "several"
    assert iwopd("train", *SETTINGS, "run.steps=2", f"run.dir={folder}") == 0
    model = folder / "checkpoints" / "step-000002" / "model"
    files = {file.name for file in model.glob("*.safetensors")}
    assert len(files) > 2
    assert set(json.loads((model / "model.safetensors.index.json").read_text())["weight_map"].values()) == files
    assert iwopd("train", *SETTINGS, "run.resume=true", f"run.dir={folder}") == 0
    ours, theirs = weights(folder / "final"), weights(tmp_path / "one" / "final")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert iwopd("eval", *SETTINGS, f"eval.model={folder / 'final'}", f"run.dir={tmp_path / 'eval'}") == 0


def test_one_that_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saved, "FILE_BYTES", 2**16)
    folder = tmp_path / "run"
    assert iwopd("train", *SETTINGS, "run.steps=1", "run.save_every=0", f"run.dir={folder}") == 0
    sorted((folder / "final").glob("model-*.safetensors"))[0].unlink()
    assert "model-00001-of-" in refused(capsys, "eval", *SETTINGS, f"eval.model={folder / 'final'}")
