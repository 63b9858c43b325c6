"""Models as they come: of odd architectures, with adapters beside them, in old formats; and what is saved of them."""

import json
import logging
import shutil
from functools import wraps
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from architectures import EOS, PAD, SMALL, VOCABULARY, make, problems, save
from running import iwopd, refused
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedModel

from iwopd import build, saved
from iwopd.build.models import adapters
from iwopd.config import Config, StudentConfig
from iwopd.config.models import LoraConfig
from iwopd.engines.base import Sampling
from iwopd.engines.hf import CACHE_GAPS, NOISE, HfEngine, cache_agrees
from iwopd.errors import EngineError, ModelError
from iwopd.language_model import LanguageModel, load_pretrained
from iwopd.logits import Logits, candidates
from iwopd.stages.parity import GapWatch
from iwopd.types import Prompt

TINY = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD}
SHAPE = {**TINY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**SHAPE, "num_key_value_heads": 1, "initializer_range": 0.2, "max_position_embeddings": 256}
RECURRENT = {"block_types": ["recurrent", "recurrent", "attention"], "lru_width": 64, "attention_window_size": 16}
SSM = {"mamba_d_ssm": 128, "mamba_d_head": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_n_groups": 1}
STATES = {"d_model": 64, "n_heads": 2, "n_layers": 2, "max_seq_len": 256}
# Each with what is odd about it.
ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "mpt": ("MptConfig", {**TINY, **STATES, "logit_scale": None, "initializer_range": 0.2}),
    "mpt, scale in words": ("MptConfig", {**TINY, **STATES, "logit_scale": "inv_sqrt_d_model"}),
    "llama4": ("Llama4TextConfig", {**GROUPED, "num_local_experts": 2, "intermediate_size_mlp": 96, "head_dim": 32}),
    "falcon_h1": ("FalconH1Config", {**GROUPED, **SSM, "lm_head_multiplier": 0.3}),
    "hyperclovax": ("HyperCLOVAXConfig", {**GROUPED, "logits_scaling": 3.0}),  # multiplies where Granite divides
    "rwkv": ("RwkvConfig", {**TINY, "hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": 2}),
    "recurrent_gemma": ("RecurrentGemmaConfig", {**GROUPED, **RECURRENT, "num_hidden_layers": 3, "head_dim": 32}),
    "minimax": ("MiniMaxConfig", {**GROUPED, "num_local_experts": 2}),
    "xlstm": ("xLSTMConfig", {**TINY, "hidden_size": 64, "num_heads": 2, "num_hidden_layers": 2}),
    "openai-gpt": ("OpenAIGPTConfig", {**TINY, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    "bert-generation": ("BertGenerationConfig", {**SHAPE, "is_decoder": False, "initializer_range": 0.2}),
    "bert": ("BertConfig", {**SHAPE, "is_decoder": True}),
}


def odd(name: str, seed: int = 0) -> PreTrainedModel:
    kind, options = ODD[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options))
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def odd_folder(folder: Path, name: str) -> Path:
    return save(odd(name), folder / name)


def run_of(folder: Path, student: Path, teacher: Path | None = None) -> tuple[str, ...]:
    models = (f"student.path={student}", f"teacher.path={teacher or student}", f"run.dir={folder / 'run'}")
    return (*SMALL, *problems(folder), *models, "run.steps=1")


# ---------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("name", ["mpt", "mpt, scale in words", "llama4", "falcon_h1", "hyperclovax"])
def test_decoder_and_head_make_the_logits_of_the_architecture(name: str) -> None:
    model, ids = odd(name), torch.arange(12)[None]
    lm = LanguageModel(model)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        found = lm.head(lm.decoder(input_ids=ids, use_cache=False).last_hidden_state)
    assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert lm.logits.plain == (name not in ("falcon_h1", "hyperclovax"))


def test_what_a_config_may_mean_is_tried_likeliest_first() -> None:
    class Settings:
        logit_scale, logits_scaling, final_logit_softcapping = 0.5, 4, 30.0

    found = candidates(Settings())
    assert found[0] == Logits(0.125, 30.0)
    assert found[-1].plain
    assert Logits(4, None) in found


def test_a_head_that_is_not_known_is_one_line(tmp_path: Path, capsys) -> None:
    line = refused(capsys, "train", *run_of(tmp_path, odd_folder(tmp_path, "bert")))
    assert "student: BertLMHeadModel makes logits in a way that is not known here" in line


# ---------------------------------------------------------------------------------------------- caches


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rwkv", "takes no cache of the usual kind"),
        ("openai-gpt", "takes no cache of the usual kind"),
        ("recurrent_gemma", "answers otherwise with a cache than without one"),
        ("bert-generation", "gives a row other log-probs beside longer rows than alone"),
        ("minimax", "cannot be sampled from with a cache: MiniMax uses cache of its own"),
        ("xlstm", "cannot be sampled from with a cache"),
    ],
)
@pytest.mark.parametrize("length", [2, 30])
def test_caches_that_are_of_no_use_are_refused(name: str, said: str, length: int) -> None:
    engine = HfEngine(LanguageModel(odd(name)), [EOS])
    with pytest.raises(EngineError, match=rf"rollout=hf: \w+ {said}"):
        engine.check_logprobs(Sampling(max_tokens=20), Prompt("p", list(range(length)), ""))


@pytest.mark.parametrize("dtype", CACHE_GAPS)
def test_how_far_a_cache_may_be_off(dtype: torch.dtype) -> None:
    mean, largest = CACHE_GAPS[dtype]
    assert largest <= 1.0
    none, noise = torch.zeros(48), torch.full((48,), 0.02)
    assert cache_agrees(torch.full((48,), 0.99 * mean), none, dtype)
    assert not cache_agrees(torch.full((48,), 1.01 * mean), none, dtype)
    assert cache_agrees(torch.full((48,), mean + 0.99 * NOISE * 0.02), noise, dtype)
    assert not cache_agrees(torch.full((48,), mean + 1.01 * NOISE * 0.02), noise, dtype)
    one = none.clone()
    one[7] = 0.99 * min(largest, 48 * mean)
    assert cache_agrees(one, none, dtype)
    many = torch.zeros(4800)
    many[7] = 1.01 * largest
    assert not cache_agrees(many, none, dtype)


@pytest.mark.parametrize("loss", [0.05, 4.0])
def test_a_cache_that_loses_something_is_refused(loss: float, monkeypatch) -> None:
    """Of float32, also where it is far less than the half nat that would be seen in any text."""
    forward = transformers.LlamaModel.forward

    @wraps(forward)
    def forgetful(self, **given):
        output = forward(self, **given)
        if given["input_ids"].shape[1] == 1:
            output.last_hidden_state = output.last_hidden_state * (1 + loss)
        return output

    engine = HfEngine(LanguageModel(make("llama").eval()), [EOS])
    engine.check_logprobs(Sampling(max_tokens=20), Prompt("p", [1, 2, 3], ""))
    monkeypatch.setattr(transformers.LlamaModel, "forward", forgetful)
    with pytest.raises(EngineError, match="answers otherwise"):
        engine.check_logprobs(Sampling(max_tokens=20), Prompt("p", [1, 2, 3], ""))


def test_an_evaluation_looks_at_the_cache_too(tmp_path: Path, capsys) -> None:
    folder = odd_folder(tmp_path, "rwkv")
    line = refused(capsys, "eval", *run_of(tmp_path, folder), f"eval.model={folder}")
    assert "RwkvForCausalLM takes no cache of the usual kind" in line


def test_the_running_gap_warns_once_and_again_when_it_has_doubled(caplog: pytest.LogCaptureFixture) -> None:
    watch = GapWatch(0.02)
    for gap in (0.01, 0.02, 0.029, 0.05, 0.06):  # means 0.01, 0.015, 0.0197, 0.027, 0.034
        watch.see(gap)
    assert [record.args for record in caplog.records] == [(pytest.approx(0.02725), 4)]
    watch.see(0.3)
    assert len(caplog.records) == 2


def test_a_gap_while_training_is_told(tmp_path: Path, monkeypatch, capsys) -> None:
    drawn = HfEngine._records

    def shifted(self, requests, tokens, logprobs, lengths, stopped):
        return drawn(self, requests, tokens, logprobs - 0.03, lengths, stopped)

    monkeypatch.setattr(HfEngine, "_records", shifted)
    settings = run_of(tmp_path, save(make("llama"), tmp_path / "llama"))
    assert iwopd("train", *settings) == 0
    assert "train/sampler_gap_mean" in capsys.readouterr().err + (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize("name", ["opt", "mamba", "qwen3_next", "rwkv", "mpt", "minimax"])
def test_doctor_looks_at_every_architecture(name: str, tmp_path: Path, capsys) -> None:
    folder = odd_folder(tmp_path, name) if name in ODD else save(make(name), tmp_path / name)
    status = iwopd("doctor", *run_of(tmp_path, folder), f"doctor.json={tmp_path / 'found.json'}")
    found = json.loads((tmp_path / "found.json").read_text())
    lines = [
        each["text"] for section in found["sections"] for each in section["findings"] if each["level"] == "problem"
    ]
    assert status == (1 if name in ("rwkv", "minimax") else 0), lines
    assert not any("could not be checked" in line for line in lines)
    assert [place["stage"] for place in found["memory"]][:3] == ["rollout", "score", "update"]
    assert capsys.readouterr().err == ""


def test_what_cannot_be_estimated_is_a_warning(tmp_path: Path, monkeypatch) -> None:
    from iwopd.doctor.hollow import Hollow

    monkeypatch.setattr(Hollow, "_read", lambda *_: torch.empty(1).item())  # a number where there are no data
    folder = save(make("llama"), tmp_path / "llama")
    assert iwopd("doctor", *run_of(tmp_path, folder), f"doctor.json={tmp_path / 'found.json'}") == 0
    text = (tmp_path / "found.json").read_text()
    assert "sampling with LlamaForCausalLM cannot be estimated without data" in text


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


@pytest.mark.parametrize(("ids", "left"), [([999_999, 3], (3,)), (10**9, ()), ([-1, 3], (3,)), (3, (3,))])
def test_end_ids_without_a_row_are_left_out(ids, left, plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    (plain / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    section = StudentConfig(path=str(plain))
    tokenizer = build.tokenizer("student.path", str(plain), revision=None, trust_remote_code=False)
    found = build.stop_ids("student.path", section, str(plain), tokenizer)
    assert found == tuple(sorted({tokenizer.eos_token_id, *left}))
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == (0 if ids == 3 else 1)
    assert all(f"student.path={plain}: its generation config ends" in line for line in warned)


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


@pytest.mark.parametrize("lora", [0, 2])
def test_a_run_whose_files_do_not_load_does_not_end_well(lora: int, tmp_path: Path, monkeypatch, capsys) -> None:
    whole = PreTrainedModel.save_pretrained

    def without_weights(self, folder, **given):
        whole(self, folder, **given)
        (Path(folder) / "model.safetensors").unlink()

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", without_weights)
    settings = (*SMOKE, "run.save_every=0", "eval.every=0", "eval.benchmarks.smoke.limit=2", "run.samples=0")
    run = tmp_path / "run"
    line = refused(capsys, "train", *settings, f"student.lora.rank={lora}", f"run.dir={run}")
    assert "what was saved cannot be loaded again" in line
    assert not (run / "final").exists()


# ---------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("dtype", "rank", "warned"), [("bfloat16", 0, True), ("bfloat16", 4, False), ("float32", 0, False)]
)
def test_weights_in_bfloat16_without_adapters_are_told(dtype, rank, warned, tmp_path) -> None:
    settings = (*SMOKE, f"student.dtype={dtype}", f"student.lora.rank={rank}", "doctor.live=false")
    assert iwopd("doctor", *settings, f"doctor.json={tmp_path / 'found.json'}") == 0
    assert ("student.dtype=bfloat16, optim.lr=" in (tmp_path / "found.json").read_text()) == warned


def test_such_a_run_says_so_in_its_log(tmp_path) -> None:
    settings = (*SMOKE, "student.dtype=bfloat16", "eval.every=0", "eval.benchmarks.smoke.limit=2", "run.samples=0")
    assert iwopd("train", *settings, f"run.dir={tmp_path / 'run'}") == 0
    assert "use student.dtype=float32 optim.autocast=true" in (tmp_path / "run" / "train.log").read_text()


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
