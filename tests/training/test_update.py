"""The update: the paper's gradient, whatever the micro-batches, the padding or the window's cut."""

import logging
import math
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from iwopd.errors import NonFiniteError, OutOfMemoryError
from iwopd.losses import LOSSES, Loss
from iwopd.losses.policy_gradient import PolicyGradient
from iwopd.losses.reverse_kl import ReverseKl
from iwopd.models.batch import collate
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.numerics import iw_weights, window_bounds
from iwopd.training.objective import Objective
from iwopd.training.update import update
from iwopd.types import ScoredRollout, Signal, as_logprobs
from iwopd.weighting import Weighting
from iwopd.weighting.fire import Fire
from iwopd.weighting.first_k import FirstK
from iwopd.weighting.fixed_negative import FixedNegative
from iwopd.weighting.iw import Iw
from iwopd.weighting.prefix_ratio import PrefixRatio
from iwopd.weighting.renio import Renio
from iwopd.weighting.uniform import Uniform
from iwopd.weighting.window import Window

N, VOCABULARY = 9, 50
UNIFORM = Uniform()
IW = Iw(gamma=0.5)
PREFIX_RATIO = PrefixRatio(alpha=0.5)
RANDOM = Window(side="random", fraction=0.3)
FIRST, LAST, MIDDLE = (Window(side=side, fraction=0.3) for side in ("first", "last", "middle"))
FIRST_K = FirstK(k=3)
SCHEMES = {"uniform": UNIFORM, "iw": IW, "first30": FIRST, "random30": RANDOM, "prefix_ratio": PREFIX_RATIO}
SCHEMES |= {"first_k": FIRST_K, "fire": Fire(), "renio": Renio(normalize=True), "fixed_negative": FixedNegative()}
on_schemes = pytest.mark.parametrize("weighting", SCHEMES.values(), ids=SCHEMES)
on_normalize = pytest.mark.parametrize("normalize", ["kept", "all", "sequence"])
KINDS = ("policy_gradient", "reverse_kl")


class Trial:
    """One update whose optimiser steps are recorded, not taken: `gradients` are what AdamW would have been given."""

    def __init__(
        self,
        student: Student,
        scored: Sequence[ScoredRollout],
        weighting: Weighting,
        loss: Loss | None = None,
        student_logprobs: str = "trainer",
        **options: Any,
    ):
        self.gradients: list[Tensor] = []
        self.forwards = 0
        student.optimizer.step = lambda: self.gradients.append(flat_gradient(student))
        options = {"seeds": range(len(scored)), "advance": self.count} | options
        self.metrics = update(
            student, scored, Objective(weighting, loss or PolicyGradient(), student_logprobs), **options
        )

    def count(self, done: int, total: int, *tokens: int) -> None:
        self.forwards += 1

    @property
    def gradient(self) -> Tensor:
        [gradient] = self.gradients
        return gradient


def flat_gradient(student: Student) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in student.parameters()])


def assert_same(found: Trial, expected: Trial, tolerance: float = 1e-5) -> None:
    assert found.metrics["train/loss"] == pytest.approx(expected.metrics["train/loss"], rel=tolerance)
    assert_same_gradient(found.gradient, expected.gradient, tolerance)


def assert_same_gradient(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert expected.norm() > 0
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.fixture(scope="module")
def rollouts(make_rollouts):
    return make_rollouts(N, seed=3)


@pytest.fixture(scope="module")
def teacher(tiny_model) -> LanguageModel:
    return tiny_model(1)


@pytest.fixture(scope="module")
def records(make_scored, rollouts, teacher, tiny_student) -> list[ScoredRollout]:
    """Whole responses with everything a loss or scheme may ask for."""
    return make_scored(rollouts, teacher, signal=Signal("full"), student=tiny_student(0))


@pytest.fixture(scope="module")
def scored(records) -> list[ScoredRollout]:
    """As most runs have them: the update's own forward gives the student's log-probs."""
    return [replace(record, trainer_logprobs=None, teacher_hidden=None) for record in records]


@pytest.fixture
def trial(tiny_student, records, scored, teacher) -> Callable[..., Trial]:
    """Runs one trial; the keywords of the student, the loss and the update may be mixed."""

    def run(weighting: Weighting = UNIFORM, given: Sequence[ScoredRollout] | None = None, **options: Any) -> Trial:
        student = tiny_student(0, **{name: options.pop(name) for name in ("micro_batch_tokens",) if name in options})
        kind = LOSSES[options.pop("kind", "policy_gradient")]
        loss = kind(**{name: options.pop(name) for name in list(options) if name in kind.__dataclass_fields__})
        if given is None:
            given = records if weighting.needs_batch or loss.over_vocabulary else scored
        return Trial(student, given, weighting, loss, teacher_heads={"": teacher.head}, **options)

    return run


# ---------------------------------------------------------------------------------------------- the formula


def direct_loss(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    records: Sequence[ScoredRollout],
    kind: str,
    importance_cap: float | None = 5.0,
    normalize: str = "kept",
) -> Tensor:
    """IW-OPD's loss, one rollout at a time, with all logits at once; differentiable by the student.

    Logits of tokens that the student has not are left out.
    """
    losses = []
    for record in records:
        rollout, length = record.rollout, len(record.rollout.response_ids)
        ids = torch.tensor(rollout.ids())[None].long()
        ours, theirs = (
            log_softmax(model(ids).logits[0, -length - 1 : -1, :VOCABULARY], dim=-1) for model in (student, teacher)
        )
        targets = torch.tensor(rollout.response_ids).long()[:, None]
        logprobs, teacher_logprobs = ours.gather(-1, targets)[:, 0], theirs.gather(-1, targets)[:, 0].detach()
        advantages = teacher_logprobs - logprobs.detach()
        [weights] = iw_weights(advantages[None], torch.ones(1, length, dtype=torch.bool), 0.5)
        sampler = torch.tensor(rollout.sampler_logprobs, dtype=torch.float64)
        correction = 1.0 if importance_cap is None else (logprobs.detach() - sampler).exp().clamp(max=importance_cap)
        ratio = (logprobs - logprobs.detach()).exp()
        if kind == "policy_gradient":
            losses.append(weights * correction * -advantages * ratio)
        else:  # an expectation over the vocabulary: which token was sampled does not matter
            losses.append(weights * (ours.exp() * (ours - theirs.detach())).sum(-1))
    return torch.cat(losses).mean() if normalize == "kept" else torch.stack([row.mean() for row in losses]).mean()


@pytest.mark.parametrize(
    "options", [{"importance_cap": None}, {"importance_cap": 2.0}, {"normalize": "sequence"}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_update_computes_the_loss_and_gradient_of_the_formula(kind, options, trial, records, teacher, tiny_model):
    student = deepcopy(tiny_model(0).model).double()
    expected = direct_loss(student, deepcopy(teacher.model).double(), records, kind, **options)
    expected.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
    found = trial(IW, kind=kind, **options)
    assert found.metrics["train/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradient(found.gradient.double(), gradient, 1e-4)


def test_reverse_kl_and_its_weights_are_over_the_vocabulary_both_have(make_scored, rollouts, tiny_model, tiny_student):
    teacher = tiny_model(1, vocabulary=VOCABULARY + 14)
    given = make_scored(rollouts, teacher, signal=Signal("full"))
    found = Trial(tiny_student(0), given, IW, ReverseKl(), teacher_heads={"": teacher.head})
    models = (deepcopy(lm.model).double() for lm in (tiny_model(0), teacher))
    expected = direct_loss(*models, given, "reverse_kl")
    assert found.metrics["train/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_fixed_negative_lowers_what_the_student_finds_unlikely_and_asks_no_teacher(trial, records, tiny_model):
    student, losses = deepcopy(tiny_model(0).model).double(), []
    for record in records:
        targets = torch.tensor(record.rollout.response_ids).long()[:, None]
        logits = student(torch.tensor(record.rollout.ids())[None].long()).logits[0, -len(targets) - 1 : -1]
        logprobs = log_softmax(logits, dim=-1).gather(-1, targets)[:, 0]
        losses.append(2.0 * logprobs[logprobs.detach().exp() < 0.1])
    torch.cat(losses).mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
    found = [
        trial(FixedNegative(threshold=0.1, size=2.0), given, importance_cap=None)
        for given in (records, [replace(record, teacher_logprobs=record.teacher_logprobs - 3) for record in records])
    ]
    for each in found:
        assert_same_gradient(each.gradient.double(), gradient, 1e-4)
        assert each.metrics["train/kept_tokens"] == sum(len(rows) for rows in losses)


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_equal_to_student_gives_no_gradient(kind, trial, make_scored, rollouts, tiny_student):
    student = tiny_student(0)
    own = make_scored(rollouts, student.lm, signal=Signal("full"))
    student.model.requires_grad_(True)
    found = Trial(student, own, IW, LOSSES[kind](), teacher_heads={"": student.lm.head})
    assert found.gradient.norm() < 1e-5 * trial(IW, kind=kind).gradient.norm()
    assert found.metrics["train/abs_advantage_mean"] < 1e-5


def test_metrics_are_means_over_the_windows_tokens(trial, records, make_scored, rollouts, teacher):
    found = trial(FIRST, make_scored(rollouts, teacher, FIRST.window(0.0))).metrics
    windows = [range(*FIRST.window(0.0)(len(record.rollout.response_ids))) for record in records]
    gaps, noise = [], []
    for record, window in zip(records, windows, strict=True):
        gaps += [record.teacher_logprobs[t] - record.trainer_logprobs[t] for t in window]
        noise += [abs(record.trainer_logprobs[t] - record.rollout.sampler_logprobs[t]) for t in window]
    assert found["tokens/trained"] == found["train/kept_tokens"] == len(gaps)
    assert found["train/advantage_mean"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)
    assert found["train/reverse_kl"] == pytest.approx(-sum(gaps) / len(gaps), rel=1e-4)
    assert found["train/abs_advantage_mean"] == pytest.approx(sum(map(abs, gaps)) / len(gaps), rel=1e-4)
    assert found["train/sampler_gap_mean"] == pytest.approx(sum(noise) / len(noise), rel=1e-4)
    assert (found["train/weight_min"], found["train/weight_mean"], found["train/weight_max"]) == (1, 1, 1)


def test_advantages_are_of_the_logprobs_that_were_asked_for(trial, records):
    gaps = [
        teacher - sampler
        for record in records
        for teacher, sampler in zip(record.teacher_logprobs, record.rollout.sampler_logprobs, strict=True)
    ]
    found = trial(student_logprobs="sampler").metrics["train/advantage_mean"]
    assert found == pytest.approx(sum(gaps) / len(gaps), rel=1e-5)


# ---------------------------------------------------------------------------------------------- invariances


@on_normalize
@on_schemes
def test_loss_and_gradient_do_not_depend_on_micro_batches(weighting, normalize, trial):
    whole = trial(weighting, normalize=normalize)
    single = trial(weighting, normalize=normalize, micro_batch_tokens=1)
    threes = trial(weighting, normalize=normalize, micro_batch_tokens=3 * 17)
    assert (whole.forwards, single.forwards) == (1, N)
    assert 1 < threes.forwards < N
    assert_same(single, whole)
    assert_same(threes, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_is_the_same_for_any_micro_batches(kind, trial):
    whole, parts = (trial(IW, kind=kind, micro_batch_tokens=tokens).metrics for tokens in (10**6, 40))
    assert parts == pytest.approx(whole, rel=1e-5)


@on_normalize
@on_schemes
def test_loss_and_gradient_do_not_depend_on_the_order_of_the_batch(weighting, normalize, trial, records, scored):
    given = records if weighting.needs_batch else scored
    order = random.Random(0).sample(range(N), N)
    shuffled = trial(weighting, [given[i] for i in order], seeds=order, normalize=normalize, micro_batch_tokens=50)
    assert_same(shuffled, trial(weighting, normalize=normalize))


@pytest.mark.parametrize("kind", KINDS)
@on_schemes
def test_loss_and_gradient_do_not_depend_on_the_side_of_the_padding(weighting, kind, trial, monkeypatch):
    right = trial(weighting, kind=kind)
    stage = import_module("iwopd.training.update")  # the package shows the function of that name
    monkeypatch.setattr(stage, "collate", partial(collate, padding="left"))
    assert_same(trial(weighting, kind=kind), right)


@on_normalize
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", [FIRST, LAST, MIDDLE, FIRST_K], ids=["first30", "last30", "middle30", "first_k"])
def test_rows_cut_behind_their_window_give_the_gradient_of_whole_ones(
    weighting, kind, normalize, trial, records, make_scored, rollouts, teacher
):
    cut = make_scored(rollouts, teacher, weighting.window(0.0), signal=Signal("full"))
    assert sum(record.stop - record.start for record in cut) < sum(record.stop for record in records) / 2
    assert_same(
        trial(weighting, cut, kind=kind, normalize=normalize),
        trial(weighting, records, kind=kind, normalize=normalize),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_do_not_depend_on_the_chunks_of_logits(kind, trial, monkeypatch):
    whole = trial(IW, kind=kind)
    monkeypatch.setattr("iwopd.models.language_model.LOGITS_BYTES", {"cpu": 1, "cuda": 1})
    assert_same(trial(IW, kind=kind), whole)


def test_normalize_divides_by_what_it_says(trial, rollouts):
    whole = sum(len(rollout.response_ids) for rollout in rollouts)
    kept = sum(window_bounds(len(rollout.response_ids), 0.3)[1] for rollout in rollouts)
    by = {normalize: trial(FIRST, normalize=normalize) for normalize in ("kept", "all")}
    assert_same_gradient(by["all"].gradient * whole, by["kept"].gradient * kept)
    assert by["all"].metrics["train/loss"] * whole == pytest.approx(by["kept"].metrics["train/loss"] * kept)


def test_gradient_checkpointing_changes_no_gradient(trial, tiny_student, scored):
    student, calls = tiny_student(0), []
    student.model.eval()  # as sampling leaves it
    student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    student.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    found = Trial(student, scored, IW)
    assert len(calls) == 2 * found.forwards
    assert_same(found, trial(IW))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_teachers_head_is_not_rounded_by_the_students_autocast(checkpointed, tiny_student, teacher, records):
    """0.04 nats and more on a real pair. In backward, too, where chunks are computed again."""
    student, dtypes = tiny_student(0, autocast=True), []

    def head(states: Tensor) -> Tensor:
        logits = teacher.head(states)
        dtypes.append(logits.dtype)
        return logits

    if checkpointed:
        student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fresh = [replace(record, trainer_logprobs=None) for record in records]
    found = Trial(student, fresh, UNIFORM, ReverseKl(), teacher_heads={"": head})
    assert dtypes == [torch.float32] * 2
    assert found.metrics["train/loss"] == pytest.approx(trial_loss(tiny_student, teacher, fresh), rel=0.02)


def trial_loss(tiny_student, teacher, records) -> float:
    loss = ReverseKl()
    return Trial(tiny_student(0), records, UNIFORM, loss, teacher_heads={"": teacher.head}).metrics["train/loss"]


def test_autocast_gives_nearly_the_same_gradient(trial, tiny_student, scored):
    exact, found = trial(IW).gradient, Trial(tiny_student(0, autocast=True), scored, IW).gradient
    assert 0 < (found - exact).norm() < 0.1 * exact.norm()


# ---------------------------------------------------------------------------------------------- several updates


def test_a_token_is_kept_however_small_its_weight(make_scored, rollouts, teacher, tiny_student, records):
    """The theory's ratio falls below what float32 holds; the mean is over all tokens all the same."""
    count = sum(record.stop for record in records)
    steep = [
        replace(record, teacher_logprobs=record.teacher_logprobs - 60.0 * (index % 2))
        for index, record in enumerate(records)
    ]
    raw = PrefixRatio(alpha=1.0)
    found = {
        normalize: Trial(tiny_student(0), steep, raw, PolicyGradient(normalize=normalize))
        for normalize in ("kept", "all")
    }
    assert found["kept"].metrics["train/weight_min"] == 0, "nothing underflowed"
    assert found["kept"].metrics["train/kept_tokens"] == count
    assert_same(found["kept"], found["all"])


def test_each_update_takes_an_equal_share_in_order(trial, records):
    found = trial(IW, records[:8], updates=2)
    halves = [trial(IW, records[:4]), trial(IW, records[4:8])]
    for gradient, half in zip(found.gradients, halves, strict=True):
        assert_same_gradient(gradient, half.gradient)
    assert found.metrics["train/grad_norm"] == pytest.approx(max(half.metrics["train/grad_norm"] for half in halves))


@on_schemes
def test_shares_of_several_updates_add_up_to_the_whole_batch(weighting, trial, records):
    lengths = [len(record.rollout.response_ids) for record in records[:8]]
    whole = trial(weighting, records[:8], normalize="all")
    first, second = trial(weighting, records[:8], updates=2, normalize="all").gradients
    together = first * sum(lengths[:4]) + second * sum(lengths[4:])
    assert_same_gradient(together, whole.gradient * sum(lengths))


def test_the_ratio_is_to_the_recorded_logprobs(trial, records):
    recorded = [replace(record, trainer_logprobs=record.trainer_logprobs + math.log(2)) for record in records]
    hopeless = [replace(record, teacher_logprobs=np.full_like(record.teacher_logprobs, -99)) for record in recorded]
    # ρ = 1/2 everywhere: with A < 0 that is beyond the clip, without its effect on the gradient.
    found = trial(UNIFORM, hopeless)
    assert found.metrics["train/clip_fraction"] == 1
    assert not found.gradient.any()
    assert trial(UNIFORM).metrics["train/clip_fraction"] == 0


def test_advantages_are_to_the_recorded_logprobs(trial, records):
    recorded = [replace(record, trainer_logprobs=np.full_like(record.teacher_logprobs, -2)) for record in records]
    mean = sum(sum(record.teacher_logprobs) for record in records) / sum(record.stop for record in records)
    assert trial(UNIFORM, recorded).metrics["train/advantage_mean"] == pytest.approx(mean + 2.0, rel=1e-5)


def test_a_scheme_that_needs_the_batch_is_an_error_without_recorded_logprobs(trial, scored):
    with pytest.raises(ValueError, match="nothing recorded them"):
        trial(PREFIX_RATIO, scored)


# ---------------------------------------------------------------------------------------------- the step itself


def weights_of(student: Student) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()]).clone()


@pytest.mark.parametrize(("kind", "gap"), [("policy_gradient", "abs_advantage_mean"), ("reverse_kl", "reverse_kl")])
def test_updates_bring_the_student_nearer_to_the_teacher(kind, gap, tiny_student, records, teacher):
    student = tiny_student(0, lr=1e-3)
    fresh = [replace(record, trainer_logprobs=None) for record in records]
    loss = LOSSES[kind](importance_cap=None)
    gaps = [
        update(student, fresh, Objective(UNIFORM, loss), seeds=range(N), teacher_heads={"": teacher.head})[
            f"train/{gap}"
        ]
        for _ in range(4)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.95 * gaps[0]
    assert student.updates == 4


def test_gradients_are_freed_after_the_step(tiny_student, scored):
    student = tiny_student(0)
    update(student, scored, Objective(IW), seeds=range(N))
    assert all(parameter.grad is None for parameter in student.parameters())


def test_gradients_are_clipped_to_the_norm_that_was_asked_for(trial, tiny_student, scored):
    norm = trial(IW).gradient.norm().item()
    found = Trial(tiny_student(0, grad_clip=norm / 4), scored, IW)
    assert found.metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert found.gradient.norm().item() == pytest.approx(norm / 4, rel=1e-4)


@pytest.mark.parametrize("micro_batch_tokens", [1, 10**6])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
@on_schemes
def test_a_non_finite_teacher_names_the_rollout_and_changes_nothing(
    weighting, value, micro_batch_tokens, tiny_student, records, scored
):
    student = tiny_student(0, micro_batch_tokens=micro_batch_tokens)
    before = weights_of(student)
    damaged = list(records if weighting.needs_batch else scored)
    damaged[3] = replace(damaged[3], teacher_logprobs=as_logprobs([value, *damaged[3].teacher_logprobs[1:]]))
    with pytest.raises(NonFiniteError, match=r"p3#1;"):
        update(student, damaged, Objective(weighting), seeds=range(N))
    assert torch.equal(weights_of(student), before)
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_student_names_the_rollout(kind, tiny_student, teacher, records):
    student, token = tiny_student(0), records[3].rollout.prompt_ids[0]
    clean = [record for record in records if token not in record.rollout.ids()]
    assert clean
    with torch.no_grad():
        student.model.get_input_embeddings().weight[token] = torch.nan
    given = [replace(record, trainer_logprobs=None) for record in [*clean, records[3]]]
    with pytest.raises(NonFiniteError, match=r" p3#1;"):
        update(student, given, Objective(IW, LOSSES[kind]()), seeds=range(len(given)), teacher_heads={"": teacher.head})


def test_a_non_finite_gradient_changes_nothing(tiny_student, scored):
    student = tiny_student(0)
    before = weights_of(student)
    student.model.base_model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NonFiniteError, match="gradient norm is nan"):
        update(student, scored, Objective(UNIFORM), seeds=range(N))
    assert torch.equal(weights_of(student), before)
    assert student.updates == 0


# ---------------------------------------------------------------------------------------------- out of memory


@pytest.fixture
def memory(monkeypatch) -> Callable[[Callable[[int, int], bool]], None]:
    """Makes forward passes run out of memory where `full(rows, calls so far)`."""

    def limit(full: Callable[[int, int], bool]) -> None:
        whole, calls = LanguageModel.forward, []

        def forward(lm: LanguageModel, tokens: Any, readout: Any) -> Any:
            calls.append(len(tokens.input_ids))
            if full(calls[-1], len(calls)):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(lm, tokens, readout)

        monkeypatch.setattr(LanguageModel, "forward", forward)

    return limit


@pytest.mark.parametrize("rows", [1, 3])
def test_out_of_memory_halves_the_micro_batch_and_changes_no_gradient(
    rows, trial, memory, tiny_student, scored, caplog
):
    expected = trial(IW)
    memory(lambda count, calls: count > rows)
    student = tiny_student(0, micro_batch_tokens=200)
    with caplog.at_level(logging.WARNING):
        found = Trial(student, scored, IW)
    assert_same(found, expected)
    assert student.micro_batch_tokens < 200
    assert f"micro_batch_tokens={student.micro_batch_tokens}" in caplog.messages[-1]


def test_gradients_made_before_memory_ran_out_do_not_count_twice(trial, memory):
    expected = trial(IW)
    memory(lambda rows, calls: calls == 3)
    found = trial(IW, micro_batch_tokens=40)
    assert found.forwards > 3
    assert_same(found, expected)


def test_a_single_sequence_that_does_not_fit_is_an_error(memory, tiny_student, scored):
    memory(lambda rows, calls: True)
    student = tiny_student(0, micro_batch_tokens=200)
    before = weights_of(student)
    longest = max(len(record.rollout.prompt_ids) + record.stop for record in scored)
    with pytest.raises(OutOfMemoryError, match=f"one sequence of {longest} tokens does not fit"):
        update(student, scored, Objective(UNIFORM), seeds=range(N))
    assert torch.equal(weights_of(student), before)
    assert all(parameter.grad is None for parameter in student.parameters())
