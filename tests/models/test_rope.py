"""RoPE that depends on the batch, pinned to the run's context: a row's log-probs are its own, in every engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.architectures import ARCHITECTURES, EOS, GROUPED, SMALL, make, problems, save
from support.records import plain_rollout
from support.running import iwopd, refused, rows
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from iwopd.models import rope
from iwopd.models.batch import collate_tokens
from iwopd.models.language_model import LanguageModel
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.types import Prompt, Rollout

ORIGINAL, CONTEXT = 32, 68
FACTORS = {"short_factor": [1.0] * 16, "long_factor": [1 + index / 2 for index in range(16)]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": ORIGINAL, **FACTORS}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("Phi3Config", {"rope_parameters": LONGROPE, "original_max_position_embeddings": ORIGINAL}),
    "dynamic": ("LlamaConfig", {"rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL}),
    # Chooses its scale by the batch beside the frequencies, in code of its own.
    "phimoe": ("PhimoeConfig", {"rope_parameters": {**LONGROPE, "short_mscale": 1.0, "long_mscale": 1.3}}),
}
on_models = pytest.mark.parametrize("name", MODELS)


def tiny(name: str, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> Any:
    kind, options = MODELS[name]
    monkeypatch.setitem(ARCHITECTURES, name, (kind, {**GROUPED, "num_local_experts": 4, **options}))
    return make(name, seed).eval()


def rollout(size: int, seed: int) -> Rollout:
    drawn = torch.Generator().manual_seed(seed)
    prompt, response = (torch.randint(0, 250, (length,), generator=drawn).tolist() for length in (8, size))
    return plain_rollout(prompt, response, prompt_id=str(seed))


def logprobs(lm: LanguageModel, *windows: tuple[Rollout, int]) -> torch.Tensor:
    """[tokens] of the first row, each cut after so many response tokens."""
    with torch.no_grad():
        found = lm.token_logprobs(collate_tokens([row for row, _ in windows], [(0, stop) for _, stop in windows]))
    return found[: windows[0][1]]


@on_models
def test_a_row_depends_neither_on_its_neighbours_nor_on_the_cut(name: str, monkeypatch) -> None:
    short, long = rollout(12, 1), rollout(CONTEXT - 8, 2)
    for pinned in (False, True):
        model = tiny(name, monkeypatch)
        if pinned:
            rope.pin(model, CONTEXT, "student.path=x")
        lm = LanguageModel(model)
        neighbour = logprobs(lm, (short, 12)) - logprobs(lm, (short, 12), (long, CONTEXT - 8))
        cut = logprobs(lm, (long, CONTEXT - 8))[:18] - logprobs(lm, (long, 18))
        for shift in (neighbour.abs().max(), cut.abs().max()):
            assert shift < 1e-4 if pinned else shift > 0.5


@on_models
def test_a_pinned_model_is_the_models_own_at_that_length(name: str, monkeypatch) -> None:
    """A row of the context's length has the log-probs that the architecture itself gives it."""
    long, model = rollout(CONTEXT - 8 + 1, 3), tiny(name, monkeypatch)  # its last token is never read
    expected = logprobs(LanguageModel(model), (long, CONTEXT - 8 + 1))
    rope.pin(model, CONTEXT, "student.path=x")
    assert_close(logprobs(LanguageModel(model), (long, CONTEXT - 8 + 1)), expected, rtol=0, atol=1e-4)


@on_models
def test_within_the_original_length_nothing_changes(name: str, monkeypatch) -> None:
    row, model = rollout(12, 4), tiny(name, monkeypatch)
    expected = logprobs(LanguageModel(model), (row, 12))
    rope.pin(model, ORIGINAL, "student.path=x")
    assert_close(logprobs(LanguageModel(model), (row, 12)), expected, rtol=0, atol=1e-5)


@on_models
def test_samples_that_cross_the_length_have_the_trainers_logprobs(name: str, monkeypatch) -> None:
    model = tiny(name, monkeypatch)
    rope.pin(model, CONTEXT, "student.path=x")
    lm = LanguageModel(model)
    prompts = [Prompt(str(size), list(range(size)), "") for size in (5, 20)]
    for made in HfEngine(lm, [EOS]).generate(prompts, Sampling(max_tokens=40), seed=1, stream=0):
        found = logprobs(lm, (made, len(made.response_ids)))
        assert_close(torch.tensor(made.sampler_logprobs), found, rtol=0, atol=2e-4)


def test_code_that_cannot_be_pinned_is_refused(monkeypatch) -> None:
    model = tiny("dynamic", monkeypatch)
    rotary = model.model.rotary_emb
    rotary.__class__ = type("Positions", (type(rotary),), {})
    rope.pin(model, ORIGINAL, "student.path=x")
    with pytest.raises(ValueError, match=r"student.path=x: LlamaForCausalLM has RoPE of type dynamic.* 32 tokens"):
        rope.pin(model, ORIGINAL + 1, "student.path=x")


def test_vllm_is_given_the_same_frequencies() -> None:
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=ORIGINAL, rope_parameters=dict(DYNAMIC)
    )
    overrides = rope.vllm_overrides(config, CONTEXT)
    given = overrides["rope_parameters"]
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, None, seq_len=CONTEXT)
    assert given["rope_type"] == "default"
    assert_close(given["rope_theta"] ** (-torch.arange(0, 32, 2) / 32), expected, rtol=1e-5, atol=0)
    assert overrides["max_position_embeddings"] > CONTEXT
    assert rope.vllm_overrides(LlamaConfig(), CONTEXT) == {}


@pytest.mark.parametrize(
    ("parameters", "context", "served", "problem"),
    [
        (DYNAMIC, ORIGINAL, 4096, None),
        (DYNAMIC, ORIGINAL + 1, 4096, "dynamic beyond 32 tokens"),
        (LONGROPE, ORIGINAL, ORIGINAL, None),
        (LONGROPE, ORIGINAL, ORIGINAL + 1, "--max-model-len 32"),
        (LONGROPE, ORIGINAL + 1, ORIGINAL + 1, None),
        (LONGROPE, ORIGINAL + 1, ORIGINAL, "--max-model-len 33"),
    ],
)
def test_servers_that_compute_otherwise_are_reported(parameters, context, served, problem) -> None:
    config = LlamaConfig(max_position_embeddings=ORIGINAL, rope_parameters=dict(parameters))
    found = rope.server_problem(config, context, served)
    assert found is None if problem is None else problem in (found or "")


def pair(folder: Path, name: str, monkeypatch) -> tuple[str, ...]:
    student, teacher = (save(tiny(name, monkeypatch, seed), folder / f"{name}-{seed}") for seed in (0, 1))
    return (*SMALL, *problems(folder), f"student.path={student}", f"teacher.path={teacher}", "run.steps=1")


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "engines"),
    [
        ("longrope", ()),
        ("dynamic", ()),
        ("longrope", ("rollout=vllm",)),
        ("dynamic", ("rollout=vllm", "scoring=vllm")),
    ],
)
def test_a_run_beyond_the_length_has_one_policy(name, engines, tmp_path, monkeypatch) -> None:
    """The student is its own teacher: with frequencies of a row's neighbours, A would be tenths of a nat."""
    settings = pair(tmp_path, name, monkeypatch)
    own = f"teacher.path={tmp_path / f'{name}-0'}"
    assert iwopd("train", *settings, own, *engines, f"run.dir={tmp_path / 'run'}", "weighting=first30") == 0
    (row,) = [row for row in rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    assert row["train/abs_advantage_mean"] < 1e-3
    assert row["train/sampler_gap_mean"] < 1e-3
    saved = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert saved["rope_parameters"]["rope_type"] == name


@pytest.mark.cli
def test_the_length_that_dynamic_reaches_is_the_limit(tmp_path, monkeypatch, capsys) -> None:
    settings = pair(tmp_path, "dynamic", monkeypatch)
    line = refused(capsys, "train", *settings, "rollout.max_tokens=400", f"run.dir={tmp_path / 'run'}")
    assert "more than the 128 the" in line
