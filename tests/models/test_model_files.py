"""Model folders as they come: with adapters beside them, in old formats, of runs; and what is saved of models."""

import json
import logging
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.architectures import make, save
from support.running import iwopd, refused
from transformers import AutoModelForCausalLM

from iwopd import assembly
from iwopd.assembly.models import adapters
from iwopd.config import Config, StudentConfig
from iwopd.config.models import LoraConfig
from iwopd.errors import ModelError
from iwopd.models import saved, student
from iwopd.models.language_model import load_pretrained

pytestmark = pytest.mark.cli

# ---------------------------------------------------------------------------------------------- adapters and runs


@pytest.fixture
def plain(smoke_models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a student, to be changed."""
    return Path(shutil.copytree(smoke_models["student"], tmp_path / "plain"))


def with_adapters(folder: Path, base: Path) -> Path:
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    model.save_pretrained(folder)
    return folder


SMOKE = ("+experiment=smoke", "run.steps=1", "data.batch_size=8", "data.limit=16", "rollout.max_tokens=8")


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("key", ["student.path", "teacher.path", "base.path", "eval.model", "doctor"])
def test_adapters_are_refused_wherever_they_are_named(key, whole, plain, smoke_models, tmp_path, capsys) -> None:
    named = with_adapters(plain if whole else tmp_path / "adapters", smoke_models["student"])
    settings = [*SMOKE, f"{'student.path' if key == 'doctor' else key}={named}", f"run.dir={tmp_path / 'run'}"]
    if key == "base.path":
        settings.append("loss.exopd_lambda=1.25")
    if key == "doctor":
        assert iwopd("doctor", *settings, f"doctor.json={tmp_path / 'found.json'}") == 1
        line = (tmp_path / "found.json").read_text()
    else:
        line = refused(capsys, "eval" if key == "eval.model" else "train", *settings)
    assert f"={named}: holds adapters of {smoke_models['student']}" in line
    assert "merge_and_unload" in line
    assert ("remove adapter_config.json" in line) == whole
    assert not (tmp_path / "run").exists()


@pytest.mark.process
def test_the_folder_of_a_run_names_its_model(smoke_models, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    settings = (*SMOKE, "run.save_every=1", "eval.every=0", "eval.benchmarks.smoke.limit=2", "run.samples=0")
    assert iwopd("train", *settings, f"run.dir={run}") == 0
    step = run / "checkpoints" / "step-000001"
    for named, meant in ((run, run / "final"), (step.parent, step / "model"), (step, step / "model")):
        line = refused(capsys, "eval", *settings, f"eval.model={named}", f"run.dir={tmp_path / 'eval'}")
        assert line.endswith(
            f"eval.model={named}: is the folder of a run, not a model; its student is eval.model={meant}"
        )


@pytest.mark.process
def test_the_checkpoint_of_adapters_names_the_merged_model(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    settings = (*SMOKE, "run.save_every=1", "eval.every=0", "eval.benchmarks.smoke.limit=2", "run.samples=0")
    assert iwopd("train", *settings, "student.lora.rank=2", f"run.dir={run}") == 0
    model = run / "checkpoints" / "step-000001" / "model"
    line = refused(capsys, "eval", *settings, f"eval.model={model}", f"run.dir={tmp_path / 'eval'}")
    assert line.endswith(f"the run's final/ has them merged: {run / 'final'}")


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("old", [True, False])
def test_weights_in_pytorchs_formats_are_read(old: bool, plain: Path, tmp_path: Path) -> None:
    weights = load_file(plain / "model.safetensors")
    (plain / "model.safetensors").unlink()
    torch.save(weights, plain / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
    settings = (*SMOKE, f"eval.model={plain}", "eval.benchmarks.smoke.limit=2", f"run.dir={tmp_path / 'eval'}")
    assert iwopd("eval", *settings) == 0


def test_a_file_that_is_not_pytorchs_is_refused(plain: Path, tmp_path: Path, capsys) -> None:
    (plain / "model.safetensors").rename(plain / "pytorch_model.bin")
    line = refused(capsys, "train", *SMOKE, f"student.path={plain}", f"run.dir={tmp_path / 'run'}")
    assert "pytorch_model.bin is cut short or not a PyTorch file" in line


@pytest.mark.unit
@pytest.mark.parametrize(("ids", "left"), [([999_999, 3], (3,)), (10**9, ()), ([-1, 3], (3,)), (3, (3,))])
def test_end_ids_without_a_row_are_left_out(ids, left, plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    (plain / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    section = StudentConfig(path=str(plain))
    tokenizer = assembly.tokenizer("student.path", str(plain), revision=None, trust_remote_code=False)
    found = assembly.stop_ids("student.path", section, str(plain), tokenizer)
    assert found == tuple(sorted({tokenizer.eos_token_id, *left}))
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == (0 if ids == 3 else 1)
    assert all(f"student.path={plain}: its generation config ends" in line for line in warned)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3_moe", "gpt_oss", "opt"])
def test_a_saved_model_is_seen_to_be_whole(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path)
    saved.check_model(tmp_path, type(model))
    weights = load_file(tmp_path / "model.safetensors")
    last = max(key for key in weights if "layers" in key)
    for change in ("missing", "of another shape"):
        value = weights.pop(last)
        if change == "of another shape":
            weights[last] = torch.zeros(value.shape[0] + 1, *value.shape[1:])
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match="cannot be loaded again"):
            saved.check_model(tmp_path, type(model))
        weights[last] = value
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded again"):
        saved.check_model(tmp_path, type(model))


@pytest.mark.unit
def test_saved_adapters_are_seen_to_be_whole(tmp_path: Path, smoke_models) -> None:
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(smoke_models["student"]), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    model.save_pretrained(tmp_path)
    saved.check_adapters(tmp_path, model)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    weights.pop(max(weights))
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="1 of 4 weights are missing"):
        saved.check_adapters(tmp_path, model)


@pytest.mark.process
@pytest.mark.parametrize("lora", [0, 2])
def test_a_run_whose_files_do_not_load_does_not_end_well(lora: int, tmp_path: Path, monkeypatch, capsys) -> None:
    def lost(weights, folder: Path) -> None:
        saved.save_weights(weights, folder)
        (folder / "model.safetensors").unlink()

    monkeypatch.setattr(student, "save_weights", lost)
    settings = (*SMOKE, "run.save_every=0", "eval.every=0", "eval.benchmarks.smoke.limit=2", "run.samples=0")
    run = tmp_path / "run"
    line = refused(capsys, "train", *settings, f"student.lora.rank={lora}", f"run.dir={run}")
    assert "what was saved cannot be loaded again" in line
    assert not (run / "final").exists()


# ---------------------------------------------------------------------------------------------- precision


@pytest.mark.process
@pytest.mark.parametrize(
    ("dtype", "rank", "warned"), [("bfloat16", 0, True), ("bfloat16", 4, False), ("float32", 0, False)]
)
def test_weights_in_bfloat16_without_adapters_are_reported(dtype, rank, warned, tmp_path) -> None:
    settings = (*SMOKE, f"student.dtype={dtype}", f"student.lora.rank={rank}", "doctor.live=false")
    assert iwopd("doctor", *settings, f"doctor.json={tmp_path / 'found.json'}") == 0
    assert ("student.dtype=bfloat16, optim.lr=" in (tmp_path / "found.json").read_text()) == warned


@pytest.mark.process
def test_such_a_run_says_so_in_its_log(tmp_path) -> None:
    settings = (*SMOKE, "student.dtype=bfloat16", "eval.every=0", "eval.benchmarks.smoke.limit=2", "run.samples=0")
    assert iwopd("train", *settings, f"run.dir={tmp_path / 'run'}") == 0
    assert "use student.dtype=float32 optim.autocast=true" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.unit
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_adapters_are_float32_whatever_the_model_is(name: str, tmp_path: Path) -> None:
    folder = save(make(name), tmp_path / name)
    device = torch.device("cpu")
    config = object.__new__(Config)
    config.student, config.seed = StudentConfig(path=str(folder), lora=LoraConfig(rank=2)), 0
    for checkpoint in (None, tmp_path / "step"):
        model = load_pretrained(folder, key="student.path", dtype="bfloat16", device=device)
        made = adapters(config, model, checkpoint)
        trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
        assert trained == {torch.float32}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32, torch.bfloat16}
        made.save_pretrained(tmp_path / "step" / "model")


@pytest.mark.parametrize("key", ["rollout.temperature", "eval.temperature"])
@pytest.mark.parametrize("engine", ["vllm", "vllm_server"])
def test_temperatures_that_vllm_refuses_are_one_line(key: str, engine: str, tmp_path: Path, capsys) -> None:
    settings = (*SMOKE, f"rollout={engine}", f"run.dir={tmp_path / 'run'}")
    urls = ("rollout.urls=[http://localhost:1]",) if engine == "vllm_server" else ()
    line = refused(capsys, "train", *settings, *urls, f"{key}=2.5")
    assert line == f"iwopd: {key}=2.5: vLLM takes at most 2; lower it, or use rollout=hf"
