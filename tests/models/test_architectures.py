"""Any causal language model of transformers: the same log-probs and gradients as its own forward, and whole runs."""

import json
import math
import shutil
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.architectures import ARCHITECTURES, EOS, SMALL, load, make, problems, save
from support.records import plain_rollout
from support.running import iwopd, refused, rows
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedModel

from iwopd.config import OptimConfig
from iwopd.models.batch import collate_tokens
from iwopd.models.language_model import LanguageModel, load_pretrained
from iwopd.models.student import Student
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.types import Prompt, Rollout

pytestmark = pytest.mark.cli

on_architectures = pytest.mark.parametrize("name", ARCHITECTURES)
# Longer than the sliding windows, and so unlike in length that most rows are padded.
PROMPTS = [Prompt(f"p{size}", [(7 * i + size) % 256 for i in range(size)], "") for size in (3, 25, 11, 40)]


def sampled(lm: LanguageModel) -> list[Rollout]:
    return HfEngine(lm, [EOS]).generate(PROMPTS, Sampling(n=2, max_tokens=20), seed=1, stream=0)


def own_logprobs(model: PreTrainedModel, rollout: Rollout) -> torch.Tensor:
    """[time] by the model's own forward pass over this rollout alone."""
    logits = model(torch.tensor(rollout.ids())[None].long()).logits[0]
    predicting = logits[len(rollout.prompt_ids) - 1 : -1].float().log_softmax(-1)
    return predicting.gather(-1, torch.tensor(rollout.response_ids).long()[:, None]).squeeze(-1)


def flat_gradient(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat(
        [(torch.zeros_like(value) if value.grad is None else value.grad).flatten() for value in model.parameters()]
    )


@pytest.mark.unit
@on_architectures
def test_sampler_and_trainer_have_the_models_own_logprobs(name: str) -> None:
    model = make(name).eval()
    lm = LanguageModel(model)
    rollouts = sampled(lm)
    windows = [(0, len(rollout.response_ids)) for rollout in rollouts]
    with torch.no_grad():
        expected = [own_logprobs(model, rollout) for rollout in rollouts]
        trained = {
            side: (tokens := collate_tokens(rollouts, windows, padding=side)).to_rows(lm.token_logprobs(tokens))
            for side in ("right", "left")
        }
    assert max(map(len, expected)) == 20
    for place, rollout in enumerate(rollouts):
        for found in (torch.tensor(rollout.sampler_logprobs), trained["right"][place], trained["left"][place]):
            assert_close(found, expected[place], rtol=0, atol=2e-4)


@pytest.mark.unit
@on_architectures
def test_gradients_of_a_window_are_those_of_the_uncut_forward(name: str) -> None:
    """What comes after the window is never read; the gradient is that of the model's own forward over all tokens."""
    model = make(name).eval()
    lm = LanguageModel(model)
    rollouts = sampled(lm)
    windows = [(len(r.response_ids) // 4, max(1, len(r.response_ids) // 2)) for r in rollouts]
    weights = [torch.linspace(0.5, 1.5, stop - start) for start, stop in windows]
    sum(
        (own_logprobs(model, rollout)[start:stop] * weight).sum()
        for rollout, (start, stop), weight in zip(rollouts, windows, weights, strict=True)
    ).backward()
    expected = flat_gradient(model)
    model.zero_grad()
    (lm.token_logprobs(collate_tokens(rollouts, windows)) * torch.cat(weights)).sum().backward()
    assert expected.norm() > 0
    assert (flat_gradient(model) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.unit
@on_architectures
def test_weights_have_the_names_and_values_of_a_saved_model(name: str, tmp_path: Path) -> None:
    """What an engine is given is what it would have read from a folder."""
    model = make(name)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    given = dict(Student(LanguageModel(model), OptimConfig(lr=1e-3)).named_weights())
    assert given.keys() == saved.keys()
    for key, value in given.items():
        assert_close(value, saved[key], rtol=0, atol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, made when first asked for, and problems."""
    return tmp_path_factory.mktemp("architectures")


def model_folder(folder: Path, name: str, seed: int = 0, **changes: object) -> Path:
    made = folder / f"{name}-{seed}-{'-'.join(map(str, changes.values()))}"
    return made if made.exists() else save(make(name, seed, **changes), made)


def train(folder: Path, run: Path, student: Path, teacher: Path, *overrides: str) -> list[dict]:
    """The training rows of a run's metrics."""
    pair = (f"student.path={student}", f"teacher.path={teacher}")
    assert iwopd("train", *SMALL, *problems(folder), *pair, f"run.dir={run}", *overrides) == 0
    found = rows(run / "metrics.jsonl")
    assert all(math.isfinite(value) for row in found for value in row.values())
    return [row for row in found if "train/loss" in row]


def assert_trained(steps: list[dict], run: Path, student: Path) -> None:
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["train/abs_advantage_mean"] > 0.01 for row in steps)
    before = load(student)
    after = load(run / "final")
    moved = [key for key, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[key])]
    trained = [key for key, _ in before.named_parameters()]
    assert len(set(moved) & set(trained)) > 0.8 * len(trained)
    assert_final_is_what_was_measured(after.eval(), run)


def assert_final_is_what_was_measured(model: PreTrainedModel, run: Path) -> None:
    """The last samples' log-probs were the student's in the run; final/ must give the same."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    last = rows(run / "samples.jsonl")[-1]
    by_text = {tokenizer.decode([index]): index for index in range(len(tokenizer))}
    known = 0
    while known < len(last["tokens"]) and len(last["tokens"][known]) == 1 and last["tokens"][known] != "\ufffd":
        known += 1  # up to the first byte that is no character of its own
    ids = [by_text[token] for token in last["tokens"][:known]]
    prompt = tokenizer.encode(last["prompt"], add_special_tokens=False)
    with torch.no_grad():
        found = own_logprobs(model, plain_rollout(prompt, ids))
    assert_close(found, torch.tensor(last["sampler_logprobs"][:known]), rtol=0, atol=2e-4)


@pytest.mark.process
@on_architectures
def test_a_pair_trains_two_steps(name: str, folder: Path, tmp_path: Path) -> None:
    student, teacher = model_folder(folder, name), model_folder(folder, name, seed=1)
    steps = train(folder, tmp_path / "run", student, teacher)
    assert all(row["train/sampler_gap_mean"] < 1e-4 for row in steps)
    assert_trained(steps, tmp_path / "run", student)


@pytest.mark.process
@on_architectures
def test_a_teacher_that_is_the_student_teaches_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    student = model_folder(folder, name)
    (row,) = train(folder, tmp_path / "run", student, student, "run.steps=1")
    assert row["train/abs_advantage_mean"] < 1e-5
    assert abs(row["train/reverse_kl"]) < 1e-5


@pytest.mark.unit
@pytest.mark.parametrize(("name", "chosen"), [("llama", "sdpa"), ("gpt_oss", "eager"), ("gemma2", "eager")])
def test_attention_is_the_fastest_that_leaves_nothing_out(name: str, chosen: str, folder: Path) -> None:
    """transformers' sdpa would run Gemma 2 without the cap on its attention, other than vLLM does."""
    made = load_pretrained(model_folder(folder, name), key="student.path", dtype="float32", device=torch.device("cpu"))
    assert made.config._attn_implementation == chosen
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert_close(made(ids).logits, load(model_folder(folder, name))(ids).logits, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------- unlike pairs

PAIRS = {
    "MoE teacher, dense student": (("llama", {}), ("qwen3_moe", {})),
    "teacher with a larger vocabulary": (("qwen2", {}), ("qwen2", {"vocab_size": 512})),
    "teacher with a smaller vocabulary": (("llama", {"vocab_size": 512}), ("llama", {"vocab_size": 264})),
    "student larger than its teacher": (("llama", {"num_hidden_layers": 4}), ("llama", {"num_hidden_layers": 1})),
    "another family": (("gpt_neox", {}), ("gemma2", {})),
}


@pytest.mark.process
@pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("loss", ["policy_gradient", "reverse_kl"])
def test_unlike_pairs_train(ours: tuple, theirs: tuple, loss: str, folder: Path, tmp_path: Path) -> None:
    student, teacher = model_folder(folder, ours[0], **ours[1]), model_folder(folder, theirs[0], seed=1, **theirs[1])
    steps = train(folder, tmp_path / "run", student, teacher, f"loss={loss}", "weighting=first30")
    assert_trained(steps, tmp_path / "run", student)


def assert_merged_beside(base: Path, run: Path) -> None:
    """What an engine is given while adapters train is what final/ holds."""
    model = load(base)
    with warnings.catch_warnings(action="ignore"):
        saved = str(run / "checkpoints" / "step-000002" / "model")
        adapters = peft.PeftModel.from_pretrained(model, saved, is_trainable=True)
    student = Student(LanguageModel(model), OptimConfig(lr=1e-3), adapters=adapters)
    saved = load_file(run / "final" / "model.safetensors")
    given = dict(student.named_weights())
    assert given.keys() == saved.keys()
    for key, value in given.items():
        assert_close(value, saved[key], rtol=0, atol=1e-6)


@pytest.mark.process
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi", "qwen3_moe", "gpt_oss"])
def test_adapters_train_resume_and_merge(name: str, folder: Path, tmp_path: Path) -> None:
    student, teacher = model_folder(folder, name), model_folder(folder, name, seed=1)
    whole, half = tmp_path / "whole", tmp_path / "half"
    settings = ("student.lora.rank=4", "run.save_every=1", "optim.lr=1e-2")
    train(folder, whole, student, teacher, *settings)
    after = load(whole / "final")
    assert_final_is_what_was_measured(after.eval(), whole)
    before = load(student).state_dict()
    assert before.keys() == after.state_dict().keys()
    assert any(not torch.equal(value, before[key]) for key, value in after.state_dict().items())
    assert_merged_beside(student, whole)
    shutil.copytree(whole, half)
    shutil.rmtree(half / "final")
    shutil.rmtree(half / "checkpoints" / "step-000002")
    train(folder, half, student, teacher, *settings, "run.resume=true")
    assert (half / "final" / "model.safetensors").read_bytes() == (whole / "final" / "model.safetensors").read_bytes()


def test_a_cache_that_is_not_used_is_reported(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """As with an architecture that keeps its past elsewhere: its samples would not be its own."""
    forward = transformers.LlamaModel.forward

    def forgetful(self, *args, **given):
        return forward(self, *args, **given | {"past_key_values": None})

    monkeypatch.setattr(transformers.LlamaModel, "forward", forgetful)
    student = model_folder(folder, "llama")
    pair = (f"student.path={student}", f"teacher.path={student}")
    line = refused(capsys, "train", *SMALL, *problems(folder), *pair, f"run.dir={tmp_path / 'run'}")
    assert "rollout=hf: LlamaForCausalLM answers otherwise with a cache than without one" in line


# ---------------------------------------------------------------------------------------------- code of their own

OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class MineConfig(LlamaConfig):
    model_type = "mine"

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def own_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose config.json asks for a Python file beside it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    made = tmp_path / "mine"
    shutil.copytree(model_folder(folder, "llama"), made)
    config = json.loads((made / "config.json").read_text())
    names = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": names}
    (made / "config.json").write_text(json.dumps(config))
    (made / "mine.py").write_text(OWN_CODE)
    return made


@pytest.mark.parametrize(
    ("key", "setting"), [("student.path", "student"), ("teacher.path", "teacher"), ("eval.model", "student")]
)
def test_code_of_a_models_own_does_not_run_unasked(
    key: str, setting: str, own_code: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_code / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    plain = model_folder(folder, "llama")
    paths = {"student.path": plain, "teacher.path": plain} | {key: own_code}
    settings = [f"{name}={path}" for name, path in paths.items()]
    verb = "eval" if key == "eval.model" else "train"
    line = refused(capsys, verb, *SMALL, *problems(folder), *settings, f"run.dir={tmp_path / 'run'}")
    assert line.startswith(f"iwopd: {key}={own_code}: comes with Python code of its own")
    assert f"{setting}.trust_remote_code=true" in line
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.process
def test_code_of_a_models_own_runs_where_it_is_trusted(own_code: Path, folder: Path, tmp_path: Path) -> None:
    trusted = ("student.trust_remote_code=true", "teacher.trust_remote_code=true", "run.save_every=1")
    run = tmp_path / "run"
    train(folder, run, own_code, own_code, *trusted, "run.steps=1")
    final = AutoModelForCausalLM.from_pretrained(run / "final", trust_remote_code=True)
    assert type(final).__name__ == "MineForCausalLM"
    model = f"eval.model={run / 'final'}"
    pair = (f"student.path={own_code}", f"teacher.path={own_code}")
    settings = (*SMALL, *problems(folder), *pair, *trusted, model, f"run.dir={tmp_path / 'eval'}")
    assert iwopd("eval", *settings) == 0


# ---------------------------------------------------------------------------------------------- vLLM


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3_moe", "gpt_neox"])
def test_vllm_answers_for_the_student(name: str, folder: Path, tmp_path: Path) -> None:
    student, teacher = model_folder(folder, name), model_folder(folder, name, seed=1)
    engine = ("rollout=vllm", "rollout.engine.kv_cache_gib=0.1", "rollout.parity.max_tokens=8")
    steps = train(folder, tmp_path / "run", student, teacher, *engine)
    assert all(row["sync/parity_max_gap"] < 1e-3 for row in steps)
    assert all(row["train/sampler_gap_mean"] < 1e-3 for row in steps)
    assert_trained(steps, tmp_path / "run", student)
