"""Updates on the teacher's k likeliest tokens, on whole distributions of several teachers, and with what is added to
the sampled signal: invariances, and the whole distribution where k is the vocabulary."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from iwopd.config import OptimConfig
from iwopd.losses import Loss
from iwopd.losses.forward_kl import ForwardKl
from iwopd.losses.jsd import Jsd
from iwopd.losses.policy_gradient import PolicyGradient
from iwopd.losses.reverse_kl import ReverseKl
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.scoring.hf import HfTeacher
from iwopd.scoring.router import TeacherRouter
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.types import Prompt, Rollout, ScoredRollout
from iwopd.weighting import Weighting
from iwopd.weighting.iw import Iw
from iwopd.weighting.uniform import Uniform
from iwopd.weighting.window import Window

N, VOCABULARY = 7, 50
CPU = torch.device("cpu")
GATED = {"entropy_gate": 2.0, "entropy_gate_top_k": 6}
LOSSES: dict[str, Loss] = {
    "reverse_kl": ReverseKl(),
    "skewed": ReverseKl(skew=0.1),
    "forward_kl": ForwardKl(),
    "jsd": Jsd(beta=0.3),
    "baseline": PolicyGradient(baseline="kl", shape="soft_log"),
    "gate": ReverseKl(**GATED),
    "gated policy gradient": PolicyGradient(**GATED),
}
on_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture(scope="module")
def rollouts(make_rollouts: Callable[..., list[Rollout]]) -> list[Rollout]:
    return make_rollouts(N, seed=5)


class Trial:
    """One update whose optimiser step is recorded, not taken."""

    def __init__(
        self,
        student: Student,
        teacher: Any,
        rollouts: list[Rollout],
        loss: Loss,
        weighting: Weighting | None = None,
        change: Callable[[ScoredRollout], ScoredRollout] = lambda record: record,
        **options: Any,
    ):
        objective = Objective(weighting or Uniform(), loss, **options)
        first = objective.needs_student_first(1)
        window = objective.weighting.window(0.0)
        own = {"student": student, "objective": objective} if first else {}
        scored = [change(each) for each in score(teacher, rollouts, window, signal=objective.signal, **own)]
        self.gradient = torch.empty(0)
        student.optimizer.step = lambda: self.keep(student)  # pyright: ignore
        heads = teacher.heads() if objective.signal.kind == "full" else None
        self.metrics = update(student, scored, objective, seeds=range(len(scored)), teacher_heads=heads)

    def keep(self, student: Student) -> None:
        self.gradient = torch.cat([each.grad.flatten() for each in student.parameters() if each.grad is not None])


def assert_same(found: Trial, expected: Trial, tolerance: float = 1e-5) -> None:
    assert found.metrics == pytest.approx(expected.metrics, rel=10 * tolerance, abs=1e-6)
    assert_same_gradient(found.gradient, expected.gradient, tolerance)


def assert_same_gradient(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert expected.norm() > 0
    assert (found - expected).norm() <= tolerance * expected.norm()


def with_signal(loss: Loss, kind: str, k: int = 8, **changes: Any) -> Loss:
    return replace(loss, signal=kind, top_k=k, **changes)


@on_losses
def test_with_all_tokens_the_likeliest_ones_are_the_whole_distribution(
    loss: Loss, rollouts: list[Rollout], tiny_model: Any, tiny_student: Any
) -> None:
    teacher = HfTeacher(tiny_model(1), CPU)
    whole = Trial(tiny_student(0), teacher, rollouts, with_signal(loss, "full"), Iw())
    for tail in ("bucket", "renormalize"):
        found = Trial(tiny_student(0), teacher, rollouts, with_signal(loss, "top_k", VOCABULARY, tail=tail), Iw())
        assert_same(found, whole)


@on_losses
def test_padded_vocabularies_are_cut_to_the_tokens_both_have(
    loss: Loss, rollouts: list[Rollout], tiny_model: Any, tiny_student: Any
) -> None:
    """The teacher has 14 rows more, or the student has: in both ways the whole distribution is the reference."""
    for ours, theirs in ((VOCABULARY, VOCABULARY + 14), (VOCABULARY + 14, VOCABULARY)):
        teacher = HfTeacher(tiny_model(1, vocabulary=theirs), CPU)

        def student(rows: int = ours) -> Student:
            return Student(tiny_model(0, vocabulary=rows), OptimConfig(lr=1e-2, grad_clip=None, weight_decay=0.0))

        whole = Trial(student(), teacher, rollouts, with_signal(loss, "full"))
        found = Trial(student(), teacher, rollouts, with_signal(loss, "top_k", theirs), vocabulary=min(ours, theirs))
        assert_same(found, whole)


@on_losses
def test_micro_batches_change_nothing(loss: Loss, rollouts: list[Rollout], tiny_model: Any, tiny_student: Any) -> None:
    teacher = HfTeacher(tiny_model(1), CPU)
    whole, parts = (
        Trial(tiny_student(0, micro_batch_tokens=size), teacher, rollouts, with_signal(loss, "top_k"), Iw())
        for size in (10**6, 40)
    )
    assert_same(parts, whole)


@on_losses
def test_rows_cut_behind_their_window_give_the_gradient_of_whole_ones(
    loss: Loss, rollouts: list[Rollout], tiny_model: Any, tiny_student: Any
) -> None:
    """The window's weights are 0 elsewhere, so what lies outside of it may as well be there."""

    class Whole(Window):
        def bounds(self, length: int, progress: float) -> tuple[int, int]:
            return 0, length

    teacher = HfTeacher(tiny_model(1), CPU)
    for side in ("first", "last"):
        cut, whole = (
            Trial(tiny_student(0), teacher, rollouts, with_signal(loss, "top_k"), scheme(side=side, fraction=0.4))
            for scheme in (Window, Whole)
        )
        assert cut.metrics["train/loss"] == pytest.approx(whole.metrics["train/loss"], rel=1e-5)
        assert_same_gradient(cut.gradient, whole.gradient)


@on_losses
@pytest.mark.parametrize("signal", ["top_k", "full"])
def test_a_teacher_equal_to_the_student_gives_no_loss_and_no_gradient(
    signal: str, loss: Loss, rollouts: list[Rollout], tiny_model: Any, tiny_student: Any
) -> None:
    found = Trial(tiny_student(0), HfTeacher(tiny_model(0), CPU), rollouts, with_signal(loss, signal))
    other = Trial(tiny_student(0), HfTeacher(tiny_model(1), CPU), rollouts, with_signal(loss, signal))
    assert abs(found.metrics["train/loss"]) < 1e-5
    assert found.gradient.norm() < 1e-5 * other.gradient.norm()


def wider_model(seed: int) -> LanguageModel:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        more = {"num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3, "tie_word_embeddings": False}
        return LanguageModel(Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, pad_token_id=None, **shape, **more)))


@pytest.mark.parametrize("signal", ["top_k", "full"])
def test_each_of_several_teachers_is_compared_with_on_its_own_tokens(
    signal: str, rollouts: list[Rollout], tiny_model: Any, tiny_student: Any
) -> None:
    """Of other widths, mixed within one micro-batch; the gradient is the mean of what each gives alone."""
    teachers = {"narrow": HfTeacher(tiny_model(1), CPU), "wide": HfTeacher(wider_model(2), CPU)}
    prompts = [Prompt(each.prompt_id, [1], "", teacher="wide" if i % 3 else None) for i, each in enumerate(rollouts)]
    router = TeacherRouter(teachers, "narrow", prompts)
    loss = with_signal(Jsd(beta=0.3), signal)
    mixed = Trial(tiny_student(0), router, rollouts, loss)
    total, tokens = torch.zeros_like(mixed.gradient), 0
    for name, teacher in teachers.items():
        own = [each for each, prompt in zip(rollouts, prompts, strict=True) if (prompt.teacher or "narrow") == name]
        alone, count = Trial(tiny_student(0), teacher, own, loss), sum(len(each.response_ids) for each in own)
        total, tokens = total + count * alone.gradient, tokens + count
    assert_same_gradient(mixed.gradient, total / tokens)


def test_places_that_a_server_left_empty_go_into_the_tail(
    rollouts: list[Rollout], tiny_model: Any, tiny_student: Any
) -> None:
    """The last two of eight tokens are missing: as if six had been asked for."""

    def emptied(record: ScoredRollout) -> ScoredRollout:
        assert record.teacher_topk_logprobs is not None
        logprobs = record.teacher_topk_logprobs.copy()
        logprobs[:, 6:] = -float("inf")
        return replace(record, teacher_topk_logprobs=logprobs)

    teacher = HfTeacher(tiny_model(1), CPU)
    found = Trial(tiny_student(0), teacher, rollouts, with_signal(ReverseKl(), "top_k", 8), change=emptied)
    expected = Trial(tiny_student(0), teacher, rollouts, with_signal(ReverseKl(), "top_k", 6))
    assert_same(found, expected)


def test_records_keep_eight_bytes_for_each_of_the_likeliest_tokens(rollouts: list[Rollout], tiny_model: Any) -> None:
    signal = with_signal(ReverseKl(), "top_k", 8).teacher_signal
    for record in score(HfTeacher(tiny_model(1), CPU), rollouts, lambda length: (0, length), signal=signal):
        arrays = [record.teacher_topk_ids, record.teacher_topk_logprobs]
        assert [(each.dtype.name, each.shape) for each in arrays] == [
            (name, (record.stop, 8)) for name in ("int32", "float32")
        ]
        assert sum(each.nbytes for each in arrays) == signal.bytes_per_token() * record.stop


def test_the_shape_and_the_baseline_are_those_of_the_formula(
    rollouts: list[Rollout], tiny_model: Any, tiny_student: Any
) -> None:
    """A clipped A_t is that of a teacher whose log-probs are near the student's."""
    teacher, student = HfTeacher(tiny_model(1), CPU), tiny_student(0)
    loss = PolicyGradient(shape="clip", shape_bound=0.5, importance_cap=None)
    clipped = Trial(tiny_student(0), teacher, rollouts, loss)

    def near(record: ScoredRollout) -> ScoredRollout:
        [own] = score(HfTeacher(student.lm, CPU), [record.rollout], lambda length: (0, length))
        gap = (record.teacher_logprobs - own.teacher_logprobs).clip(-0.5, 0.5)
        return replace(record, teacher_logprobs=own.teacher_logprobs + gap)

    by_hand = Trial(tiny_student(0), teacher, rollouts, replace(loss, shape="none"), change=near)
    assert clipped.metrics["train/loss"] == pytest.approx(by_hand.metrics["train/loss"], rel=1e-4)
    assert_same_gradient(clipped.gradient, by_hand.gradient, 1e-3)
    assert clipped.metrics["train/abs_advantage_mean"] > 0.5  # metrics are of A_t as it is
