"""Dropout and routers' noise: never in A_t, in the ratio or in the importance correction, whatever the model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from support.architectures import ARCHITECTURES, EOS, VOCABULARY, make
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from iwopd.config import OptimConfig
from iwopd.errors import ModelError, NonFiniteError
from iwopd.losses import LOSSES
from iwopd.models.batch import collate
from iwopd.models.evaluation_mode import adapter_dropouts, evaluation_mode
from iwopd.models.language_model import LanguageModel
from iwopd.models.seeded_dropout import SeededDropout
from iwopd.models.student import Student
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.seeding import derive_seed
from iwopd.training.objective import Objective
from iwopd.training.score import score, trainer_logprobs
from iwopd.training.update import update
from iwopd.types import Prompt, ScoredRollout, Signal
from iwopd.weighting.iw import Iw

pytestmark = pytest.mark.process

IW = Iw(gamma=0.5)
PROMPTS = [Prompt(f"p{size}", [(7 * i + size) % 256 for i in range(size)], "") for size in (3, 25, 11, 40)]
CHECKPOINTING = {"use_reentrant": False}
on_checkpointing = pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])

# Where each has its noise: nn.Dropout, functional dropout within a layer, layers left out, attention, routers.
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
NOISY: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("OPTConfig", {**_SHAPE, "ffn_dim": 96, "word_embed_proj_dim": 64, "layerdrop": 0.2}),
    "gpt2": ("GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    "bloom": ("BloomConfig", {**_SHAPE, "n_head": 2, "n_layer": 2, "hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "starcoder2": ("Starcoder2Config", {**_GROUPED, "residual_dropout": 0.1, "embedding_dropout": 0.1}),
    "eager": ("LlamaConfig", {**_GROUPED, "attention_dropout": 0.1, "attn_implementation": "eager"}),
    "sdpa": ("LlamaConfig", {**_GROUPED, "attention_dropout": 0.1, "attn_implementation": "sdpa"}),
    "phimoe": ("PhimoeConfig", {**_GROUPED, "num_local_experts": 4, "input_jitter_noise": 0.05}),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4, "router_jitter_noise": 0.1}),
}


def noisy(name: str) -> PreTrainedModel:
    kind, options = NOISY[name]
    ids = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(getattr(transformers, kind)(**ids, **options))


def adapted(dropout: float = 0.3, checkpointing: bool = False, **options: Any) -> Student:
    """LoRA as it is after some training: its second matrices are not 0 any more."""
    model = make("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=dropout, target_modules="all-linear")
        adapters = peft.get_peft_model(model, settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return student_of(model, checkpointing, adapters, **options)


def student_of(model: PreTrainedModel, checkpointing: bool = False, adapters: Any = None, **options: Any) -> Student:
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING)
    model.train()  # as a model is made
    optim = OptimConfig(**({"lr": 0.0, "grad_clip": None, "weight_decay": 0.0} | options))
    return Student(LanguageModel(model), optim, 10**6, adapters)


def own_rollouts(
    student: Student, teacher: LanguageModel | None = None, *, recorded: bool = False, **options: Any
) -> list[ScoredRollout]:
    """The student's own answers, scored by itself unless there is a teacher."""
    options["student"] = student if recorded else None
    trained = [parameter.requires_grad for parameter in student.model.parameters()]
    rollouts = HfEngine(student.lm, [EOS]).generate(PROMPTS, Sampling(n=2, max_tokens=20), seed=1, stream=0)
    scored = score(HfTeacher(teacher or student.lm, student.device), rollouts, IW.window(0.0), **options)
    for parameter, flag in zip(student.model.parameters(), trained, strict=True):
        parameter.requires_grad_(flag)  # a teacher is frozen, and here it is the student
    return scored


def gradients(student: Student, scored: Sequence[ScoredRollout], **options: Any) -> tuple[dict[str, float], Tensor]:
    """Metrics of an update, and what its last step would have given AdamW."""
    found: list[Tensor] = []

    def step() -> None:
        found.append(torch.cat([each.grad.flatten() for each in student.parameters() if each.grad is not None]))

    student.optimizer.step = step
    loss = LOSSES[options.pop("kind", "policy_gradient")]()
    weighting = options.pop("weighting", IW)
    metrics = update(student, scored, Objective(weighting, loss), **({"seeds": range(len(scored))} | options))
    return metrics, found[-1]


def assert_nothing_to_learn(student: Student, checkpointing: bool, kind: str) -> None:
    scored = own_rollouts(student, signal=Signal("full" if kind == "reverse_kl" else "sampled"))
    calls: list[int] = []
    first = next(part for part in student.model.modules() if isinstance(part, GradientCheckpointingLayer))
    handle = first.register_forward_pre_hook(lambda *_: calls.append(1))
    found, _ = gradients(student, scored, kind=kind, teacher_heads={"": student.lm.head})
    handle.remove()
    assert found["train/abs_advantage_mean"] < 1e-5
    assert found["train/sampler_gap_mean"] < 1e-5
    assert abs(found["train/reverse_kl"]) < 1e-5
    assert found["train/clip_fraction"] == 0
    if kind == "policy_gradient" or not adapter_dropouts(student.model):
        assert found["train/grad_norm"] < 1e-3
    assert len(calls) == 1 + checkpointing + bool(adapter_dropouts(student.model))


@on_checkpointing
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "policy_gradient") for name in NOISY), ("gpt2", "reverse_kl"), ("phimoe", "reverse_kl")]
)
def test_a_noisy_model_that_is_its_own_teacher_learns_nothing(name: str, kind: str, checkpointing: bool) -> None:
    model = noisy(name)
    model.train()
    ids = torch.tensor([PROMPTS[1].ids])
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits), "it is not noisy"
    assert_nothing_to_learn(student_of(model, checkpointing), checkpointing, kind)


@on_checkpointing
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_that_is_its_own_teacher_learns_nothing(name: str, checkpointing: bool) -> None:
    dropouts = {"dropout": 0.1, "attention_dropout": 0.1, "hidden_dropout": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}
    model = make(name, **dropouts)
    assert_nothing_to_learn(student_of(model, checkpointing), checkpointing, "policy_gradient")


@on_checkpointing
@pytest.mark.parametrize("kind", ["policy_gradient", "reverse_kl"])
def test_adapters_dropout_is_not_in_the_advantage(kind: str, checkpointing: bool) -> None:
    assert_nothing_to_learn(adapted(checkpointing=checkpointing), checkpointing, kind)


# ---------------------------------------------------------------------------------------------- adapters' dropout


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    return LanguageModel(make("llama", seed=1).eval())


@on_checkpointing
@pytest.mark.parametrize("kind", ["policy_gradient", "reverse_kl"])
def test_dropout_is_where_gradients_flow_and_nowhere_else(
    kind: str, checkpointing: bool, teacher: LanguageModel
) -> None:
    """∇ Σ w·A·log π with w and A without dropout and log π with it; or ∇ Σ w·KL, likewise."""
    student = adapted(checkpointing=checkpointing)
    scored = own_rollouts(student, teacher, signal=Signal("full"))
    found, gradient = gradients(student, scored, kind=kind, teacher_heads={"": teacher.head})

    batch = collate(scored, range(len(scored)))
    tokens, lm = batch.tokens, student.lm
    student.model.gradient_checkpointing_disable()
    student.model.eval()
    with torch.no_grad():
        exact = tokens.to_padded(lm.token_logprobs(tokens))
    advantages = (batch.teacher_logprobs - exact) * tokens.mask
    weights = Objective(IW).weights(batch, advantages, 0.0)
    for each in adapter_dropouts(student.model):
        each.train()
    with SeededDropout(adapter_dropouts(student.model)) as dropout:
        dropout.seeds = [derive_seed("dropout", 0, seed) for seed in range(len(scored))]  # of the first update
        logits = lm(tokens, lambda lm, states, targets: lm.head(states).log_softmax(-1))
    if kind == "policy_gradient":
        by_token = -advantages[tokens.mask] * logits.gather(-1, tokens.targets[:, None])[:, 0]
    else:
        by_token = (logits.exp() * (logits - teacher.head(batch.teacher_hidden[""]).log_softmax(-1).detach())).sum(-1)
    (weights[tokens.mask] * by_token).mean().backward()
    expected = torch.cat([each.grad.flatten() for each in student.parameters() if each.grad is not None])
    assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    assert found["train/abs_advantage_mean"] == pytest.approx(advantages.abs()[tokens.mask].mean().item(), rel=1e-4)
    assert found["train/sampler_gap_mean"] < 1e-5


def test_dropout_follows_from_the_update_and_its_rollouts_alone(teacher: LanguageModel) -> None:
    student = adapted()
    scored = own_rollouts(student, teacher)

    def gradient(seed: int, number: int = 0, first: int = 0) -> Tensor:
        torch.manual_seed(seed)  # what went before
        student.updates = number
        return gradients(student, scored, seeds=range(first, first + len(scored)))[1]

    once = gradient(1)
    assert torch.equal(gradient(2), once)
    assert not torch.equal(gradient(1, number=1), once)
    assert not torch.equal(gradient(1, first=1), once)


@pytest.mark.parametrize("updates", [1, 2])
def test_the_ratio_is_without_dropout(updates: int, teacher: LanguageModel) -> None:
    """A step that changes nothing leaves every ratio at 1, so that nothing is clipped."""
    student = adapted(dropout=0.5)
    scored = own_rollouts(student, teacher, recorded=True)
    found, _ = gradients(student, scored, updates=updates)
    assert found["train/clip_fraction"] == found["train/clip_fraction_lower"] == 0


# ---------------------------------------------------------------------------------------------- modes


def test_scoring_and_recording_are_without_dropout() -> None:
    student, rollouts = adapted(), [record.rollout for record in own_rollouts(adapted())]
    windows = [(0, len(rollout.response_ids)) for rollout in rollouts]
    expected = trainer_logprobs(student, rollouts, windows)
    student.model.train()
    found = trainer_logprobs(student, rollouts, windows)
    assert all(map(np.array_equal, found, expected))
    model = noisy("gpt2").train()
    teacher = HfTeacher(LanguageModel(model), torch.device("cpu"))
    twice = [teacher.score(rollouts, IW.window(0.0)) for _ in range(2)]
    assert twice[0] == twice[1]


@pytest.mark.parametrize("fails", [False, True])
def test_an_update_leaves_nothing_in_training_mode(fails: bool) -> None:
    student = adapted(checkpointing=True)
    scored = own_rollouts(student)
    if fails:
        damaged = replace(scored[0], teacher_logprobs=np.full_like(scored[0].teacher_logprobs, np.nan))
        with pytest.raises(NonFiniteError):
            update(student, [damaged, *scored[1:]], Objective(IW), seeds=range(len(scored)))
    else:
        update(student, scored, Objective(IW), seeds=range(len(scored)))
    assert not any(part.training for part in student.model.modules())
    hooked = [part for part in student.model.modules() if part._forward_pre_hooks or part._forward_hooks]
    assert all(part is student.model.get_input_embeddings() for part in hooked)  # transformers' own


def test_an_architecture_without_gradients_in_evaluation_mode_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As xLSTM computes long sequences, and some code that models bring along computes experts."""
    forward = transformers.LlamaModel.forward
    monkeypatch.setattr(transformers.LlamaModel, "forward", torch.no_grad()(forward))
    student = adapted()
    scored = own_rollouts(student)
    with pytest.raises(ModelError, match="without gradients in evaluation mode, so it would not learn"):
        update(student, scored, Objective(IW), seeds=range(len(scored)))


class OfItsOwn(nn.Module):
    """Code as models bring along: the parent asks for training mode, and checkpoints its layers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for _ in range(2))
        self.gradient_checkpointing = True
        self.embed_dropout = 0.5
        self.calls = 0

    def forward(self, states: Tensor) -> Tensor:
        states = nn.functional.dropout(states, self.embed_dropout, self.training)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                self.calls += 1
                states = torch.utils.checkpoint.checkpoint(layer, states, use_reentrant=False)
            else:
                states = layer(states)
        return states


def test_code_of_a_models_own_is_checkpointed_without_its_dropout() -> None:
    model, states = OfItsOwn(), torch.randn(3, 8)
    expected = model.eval()(states)
    with evaluation_mode(model):
        found = model(states)
        found.sum().backward()
    assert torch.equal(found, expected)
    assert model.calls == 2
    assert (model.embed_dropout, model.training) == (0.5, False)
