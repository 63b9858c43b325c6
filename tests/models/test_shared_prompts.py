"""Responses to one prompt that read it once: what they are given and what is learned from them stays the same."""

import itertools
from collections.abc import Sequence
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.architectures import ARCHITECTURES, EOS, make
from support.records import plain_rollout
from support.running import SMALL, iwopd, rows
from torch.testing import assert_close

from iwopd.config import OptimConfig
from iwopd.models.batch import collate_tokens
from iwopd.models.language_model import LanguageModel
from iwopd.models.packing import Packing
from iwopd.models.shared_prompts import can_share
from iwopd.models.student import Student
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.score import score, trainer_logprobs
from iwopd.training.update import update
from iwopd.types import Prompt, Rollout, ScoredRollout, Signal
from iwopd.weighting.iw import Iw
from iwopd.weighting.prefix_ratio import PrefixRatio
from iwopd.weighting.uniform import Uniform
from iwopd.weighting.window import Window

pytestmark = pytest.mark.process

CPU = torch.device("cpu")
RECURRENT = ("qwen3_next", "mamba")
# Longer than the sliding windows, and unlike in length.
PROMPTS = [Prompt(f"p{size}", [(7 * i + size) % 256 for i in range(size)], "") for size in (3, 25, 40)]
SAMPLES = 4
SCHEMES = {
    "uniform": Uniform(),
    "iw": Iw(gamma=0.5),
    "whole batch": PrefixRatio(),
    **{f"{side}30": Window(side=side, fraction=0.3) for side in ("first", "middle", "last")},
}


# ---------------------------------------------------------------------------------------------- which make a pass


def rollouts_of(prompts: Sequence[int], owners: Sequence[int], lengths: Sequence[int]) -> list[Rollout]:
    return [
        plain_rollout([owner] * prompts[owner], [0] * length) for owner, length in zip(owners, lengths, strict=True)
    ]


@given(
    prompts=st.lists(st.integers(1, 60), min_size=3, max_size=3),
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), min_size=1, max_size=20),
    limit=st.integers(1, 600),
)
def test_every_response_is_in_one_pass_and_passes_stay_within_the_limit(
    prompts: list[int], rows: list[tuple[int, int]], limit: int
) -> None:
    owners, lengths = zip(*rows, strict=True)
    packing = Packing.of(rollouts_of(prompts, owners, lengths), lengths, share=True)
    groups = packing.groups(limit)
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    assert packing.tokens <= sum(packing.lengths) * (0.8 if packing.shared else 1)
    for group in groups:
        read = {owners[index] for index in group}
        padded = len(read) * max(prompts[owner] for owner in read) + len(group) * max(lengths[i] for i in group)
        kept = len(group) * max(prompts[owner] for owner in read) / 4  # keys and values, of which each has a copy
        assert len(group) == 1 or not packing.shared or padded + kept <= limit


@given(prompt=st.integers(1, 30), lengths=st.lists(st.integers(1, 40), min_size=2, max_size=6))
def test_unlike_responses_read_their_prompt_apart_where_that_is_less(prompt: int, lengths: list[int]) -> None:
    order = sorted(lengths, reverse=True)
    least = min(
        sum(prompt + (end - start) * order[start] for start, end in itertools.pairwise([0, *cuts, len(order)]))
        for count in range(len(order))
        for cuts in itertools.combinations(range(1, len(order)), count)
    )
    packing = Packing.of(rollouts_of([prompt], [0] * len(lengths), lengths), lengths, share=True)
    assert packing.shared == (least <= 0.8 * sum(packing.lengths))
    assert packing.tokens == (least if packing.shared else sum(packing.lengths))


def test_half_of_a_pass_is_half_of_what_it_reads() -> None:
    """Else a GPU whose memory is full would be tried with the same passes again."""
    packing = Packing.of(rollouts_of([100], [0] * 8, [5] * 8), [5] * 8, share=True)
    assert packing.shared
    first = packing.halved(1000)
    assert first == (100 + 8 * (5 + 100 // 4)) // 2
    assert packing.groups(first) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    second = packing.halved(first)
    assert packing.groups(second) == [[index] for index in range(8)]
    assert packing.halved(second) == 0


# ---------------------------------------------------------------------------------------------- what a model says


def sampled(lm: LanguageModel, n: int = SAMPLES) -> list[Rollout]:
    return HfEngine(lm, [EOS]).generate(PROMPTS, Sampling(n=n, max_tokens=20), seed=1, stream=0)


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *((name, torch.float32, 1e-5) for name in ARCHITECTURES if name not in RECURRENT),
        *((name, torch.float64, 1e-12) for name in ("opt", "phi")),
    ],
)
def test_logprobs_and_gradients_are_those_of_prompts_read_alone(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Of windows in the midst of the responses."""
    lm = LanguageModel(make(name).eval())
    assert can_share(lm)
    rollouts = sampled(lm)
    lm.model.to(dtype)
    windows = [(len(r.response_ids) // 4, max(1, 3 * len(r.response_ids) // 4)) for r in rollouts]
    found = []
    for share in (False, True):
        lm.model.zero_grad()
        logprobs = lm.token_logprobs(collate_tokens(rollouts, windows, share=share))
        (logprobs * torch.linspace(0.5, 1.5, len(logprobs))).sum().backward()
        found.append((logprobs.detach(), flat_gradient(lm.model)))
    (alone, expected), (shared, gradient) = found
    assert_close(shared, alone, rtol=0, atol=tolerance)
    assert (gradient - expected).norm() < tolerance * expected.norm()
    assert expected.norm() > 0


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_architectures_read_each_prompt(name: str) -> None:
    lm = LanguageModel(make(name).eval())
    assert not can_share(lm)
    assert not lm.model.training


def test_a_model_that_does_not_look_at_its_cache_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LanguageModel(make("llama").eval())
    monkeypatch.setattr("iwopd.models.language_model.DynamicCache", Forgetful)
    assert not can_share(lm)


class Forgetful:
    """A cache that keeps nothing."""

    layers = ()

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values

    def get_seq_length(self, _: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, _: int) -> tuple[int, int]:
        return query_length, 0


# ---------------------------------------------------------------------------------------------- stages


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    return sampled(LanguageModel(make("llama").eval()))


@pytest.fixture(scope="module")
def teacher() -> HfTeacher:
    return HfTeacher(LanguageModel(make("llama", seed=1)), CPU, batch_tokens=150)


def student_of(**options: Any) -> Student:
    return Student(LanguageModel(make("llama")), OptimConfig(lr=1e-3, grad_clip=None), **options)


def columns_read(model: LanguageModel) -> list[int]:
    """Filled with the size of every input the decoder is given."""
    sizes = list[int]()
    model.decoder.register_forward_pre_hook(
        lambda _, __, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    return sizes


def equal(found: Sequence[ScoredRollout], expected: Sequence[ScoredRollout]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_close(one.teacher_logprobs, other.teacher_logprobs, rtol=0, atol=2e-5)
        if one.teacher_topk_logprobs is not None:
            assert (one.teacher_topk_ids == other.teacher_topk_ids).all()
            assert_close(one.teacher_topk_logprobs, other.teacher_topk_logprobs, rtol=0, atol=2e-5)
        if one.teacher_hidden is not None:
            assert_close(one.teacher_hidden, other.teacher_hidden, rtol=0, atol=2e-4)


@pytest.mark.parametrize("signal", [Signal(), Signal("top_k", 4), Signal("full")], ids=lambda signal: signal.kind)
def test_a_teacher_says_the_same_and_reads_less(signal: Signal, rollouts: list[Rollout], monkeypatch: Any) -> None:
    one = HfTeacher(LanguageModel(make("llama", seed=1)), CPU, batch_tokens=10**6)
    window = SCHEMES["middle30"].window(0.0)
    alone = one.score(rollouts, window, signal=signal)
    monkeypatch.setattr(one, "share_prompts", True)
    assert can_share(one.model)
    sizes = columns_read(one.model)
    equal(one.score(rollouts, window, signal=signal), alone)
    prompts = len(PROMPTS) * len(PROMPTS[-1].ids)
    assert sizes == [prompts, len(rollouts) * (max(record.stop for record in alone) - 1)]


@pytest.mark.parametrize("micro_batch_tokens", [10**6, 150])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_update_is_the_same(
    scheme: str, micro_batch_tokens: int, rollouts: list[Rollout], teacher: HfTeacher
) -> None:
    weighting, found = SCHEMES[scheme], []
    for share in (False, True):
        student = student_of(micro_batch_tokens=micro_batch_tokens, share_prompts=share)
        student.optimizer.step = lambda student=student: found.append(flat_gradient(student.model))
        needs = student if weighting.needs_batch else None
        scored = score(teacher, rollouts, weighting.window(0.0), student=needs)
        found.append(update(student, scored, Objective(weighting), seeds=range(len(rollouts))))
    expected, alone, gradient, shared = found
    assert (gradient - expected).norm() < 1e-5 * expected.norm()
    assert shared == pytest.approx(alone, rel=1e-5, abs=1e-6)
    assert expected.norm() > 0


def test_the_trainers_own_logprobs_are_the_same(rollouts: list[Rollout]) -> None:
    windows = [(0, len(rollout.response_ids)) for rollout in rollouts]
    alone, shared = (trainer_logprobs(student_of(share_prompts=share), rollouts, windows) for share in (False, True))
    for one, other in zip(shared, alone, strict=True):
        assert_close(one, other, rtol=0, atol=2e-5)
    assert any((one != other).any() for one, other in zip(shared, alone, strict=True)), "they were made in the same way"


def test_where_it_spares_nothing_every_bit_stays(rollouts: list[Rollout], teacher: HfTeacher) -> None:
    single, found = rollouts[::SAMPLES], []
    for share in (False, True):
        student = student_of(share_prompts=share)
        update(student, score(teacher, single, Uniform().window(0.0)), Objective(Uniform()), seeds=range(3))
        found.append(torch.cat([value.detach().flatten() for value in student.model.parameters()]))
    assert torch.equal(*found)


@pytest.mark.parametrize(("dropout", "shares"), [(0.0, True), (0.3, False)])
def test_adapters_share_unless_they_drop_out_by_response(
    dropout: float, shares: bool, rollouts: list[Rollout], teacher: HfTeacher
) -> None:
    found = []
    for share in (False, True):
        student = student_of(share_prompts=share)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            settings = peft.LoraConfig(
                task_type="CAUSAL_LM", r=4, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=False
            )
            peft.get_peft_model(student.model, settings)  # type: ignore[arg-type]  # transformers' model
        sizes = columns_read(student.lm)
        student.optimizer.step = lambda student=student: found.append(flat_gradient(student.model))
        update(student, score(teacher, rollouts, Uniform().window(0.0)), Objective(Uniform()), seeds=range(12))
    assert (found[1] - found[0]).norm() < 1e-5 * found[0].norm()
    assert (sizes[-2] == len(PROMPTS) * len(PROMPTS[-1].ids)) == shares


def test_layers_that_are_computed_again_in_backward_read_each_prompt() -> None:
    student = student_of(share_prompts=True)
    assert can_share(student.lm)
    student.model.gradient_checkpointing_enable()
    assert not can_share(student.lm)


# ---------------------------------------------------------------------------------------------- a run


def test_a_run_learns_the_same(smoke_models: object, tmp_path: Any) -> None:
    found = []
    for share in ("false", "true"):
        folder = tmp_path / share
        options = ("run.steps=2", "eval.every=0", "run.save_every=0", "rollout.n=4", f"rollout.share_prompts={share}")
        assert iwopd("train", *SMALL, *options, "data.batch_size=4", f"run.dir={folder}") == 0
        found.append([row for row in rows(folder / "metrics.jsonl") if "train/loss" in row])
    for alone, shared in zip(*found, strict=True):
        for key in ("train/loss", "train/grad_norm", "train/reverse_kl", "tokens/trained"):
            assert shared[key] == pytest.approx(alone[key], rel=1e-4), key
    assert found[0][0]["train/loss"] != found[1][0]["train/loss"], "they were made in the same way"
