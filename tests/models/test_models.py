"""Models as they come: of odd architectures, with adapters beside them, in old formats; and what is saved of them."""

import json
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.architectures import EOS, PAD, SMALL, VOCABULARY, make, problems, save
from support.running import iwopd, refused
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedModel

from iwopd.errors import EngineError
from iwopd.models.language_model import LanguageModel
from iwopd.models.logits import Logits, candidates
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine, cache_agrees
from iwopd.training.parity import GapWatch
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


@pytest.mark.cli
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


FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "gaps", "noise", "agrees"),
    [
        (FLOAT32, [2e-5] * 48, 0.0, True),  # what rounding makes
        (BFLOAT16, [0.007] * 48, 0.0, True),
        (BFLOAT16, [0.06] * 48, 0.0, True),  # of 135 M parameters
        (BFLOAT16, [0.13] * 48, 0.0, False),  # the least that a cache which loses something was seen to make
        (FLOAT32, [0.05] * 48, 0.0, False),
        (BFLOAT16, [0.13] * 48, 0.02, True),  # passes without a cache are as far from each other
        (BFLOAT16, [0.3] * 48, 0.02, False),
        (BFLOAT16, [0.0] * 47 + [0.9], 0.0, True),  # one token
        (BFLOAT16, [0.0] * 4799 + [1.6], 0.0, False),
        (FLOAT32, [0.0] * 4799 + [0.2], 0.0, False),
    ],
)
def test_how_far_a_cache_may_be_off(dtype: torch.dtype, gaps: list[float], noise: float, agrees: bool) -> None:
    found = cache_agrees(torch.tensor(gaps), torch.full((len(gaps),), noise), dtype)
    assert found is agrees


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


@pytest.mark.cli
def test_an_evaluation_looks_at_the_cache_too(tmp_path: Path, capsys) -> None:
    folder = odd_folder(tmp_path, "rwkv")
    line = refused(capsys, "eval", *run_of(tmp_path, folder), f"eval.model={folder}")
    assert "RwkvForCausalLM takes no cache of the usual kind" in line


def test_the_running_gap_warns_once_and_again_when_it_has_doubled(caplog: pytest.LogCaptureFixture) -> None:
    watch = GapWatch(0.02)
    for gap in (0.01, 0.02, 0.029, 0.05, 0.06):  # means 0.01, 0.015, 0.0197, 0.027, 0.034
        watch.see(gap)
    [warned] = [record.getMessage() for record in caplog.records]
    assert "by 0.0272 nats per token over 4 steps" in warned
    watch.see(0.3)
    assert len(caplog.records) == 2


@pytest.mark.process
def test_a_gap_while_training_is_reported(tmp_path: Path, monkeypatch, capsys) -> None:
    drawn = HfEngine.generate

    def shifted(self, *given, **options):
        made = drawn(self, *given, **options)
        return [replace(each, sampler_logprobs=each.sampler_logprobs - 0.03) for each in made]

    monkeypatch.setattr(HfEngine, "generate", shifted)
    settings = run_of(tmp_path, save(make("llama"), tmp_path / "llama"))
    assert iwopd("train", *settings) == 0
    assert "train/sampler_gap_mean" in capsys.readouterr().err + (tmp_path / "run" / "train.log").read_text()


@pytest.mark.process
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


@pytest.mark.cli
def test_what_cannot_be_estimated_is_a_warning(tmp_path: Path, monkeypatch) -> None:
    forward = transformers.LlamaModel.forward

    @wraps(forward)
    def looking(self, **given):
        assert given["input_ids"].min().item() >= 0  # a number of the data
        return forward(self, **given)

    monkeypatch.setattr(transformers.LlamaModel, "forward", looking)
    folder = save(make("llama"), tmp_path / "llama")
    assert iwopd("doctor", *run_of(tmp_path, folder), f"doctor.json={tmp_path / 'found.json'}") == 0
    text = (tmp_path / "found.json").read_text()
    assert "sampling with LlamaForCausalLM cannot be estimated without data" in text
