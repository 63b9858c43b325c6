"""Schemes that look at both models' distributions: plain loops, whole updates, and what they need of the signal."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.composing import composed
from torch import Tensor

from iwopd.errors import ConfigError
from iwopd.losses import Loss
from iwopd.losses.policy_gradient import PolicyGradient
from iwopd.losses.reverse_kl import ReverseKl
from iwopd.numerics import WeightInput
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.types import Rollout
from iwopd.weighting import Weighting
from iwopd.weighting.select_verify import SelectVerify
from iwopd.weighting.tip import Tip

CPU = torch.device("cpu")


def given(**measures: Tensor) -> WeightInput:
    """Rows of 9, 4 and 1 tokens."""
    lengths, positions = torch.tensor([9, 4, 1]), torch.arange(9).expand(3, -1)
    mask, values = positions < lengths[:, None], torch.zeros(3, 9, dtype=torch.float64)
    return WeightInput(values, mask, positions, lengths, values, 0.0, [0, 1, 2], measures)


def random(seed: int) -> Tensor:
    return torch.rand(3, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("fraction", [0.5, 0.1, 1.0])
def test_tip_keeps_the_tokens_of_the_whole_batch_that_plain_loops_do(fraction: float) -> None:
    entropy, divergence = 3 * random(0), 0.2 * random(1)
    entropy[1, 7] = divergence[2, 5] = 1e9  # outside the mask
    seen = given(entropy=entropy, reverse_kl=divergence)
    places = [(row, t) for row, length in enumerate([9, 4, 1]) for t in range(length)]
    scores = {}
    for row, t in places:
        h, d = (
            (values[row, t] - min(values[place] for place in places))
            / (max(values[place] for place in places) - min(values[place] for place in places))
            for values in (entropy, divergence)
        )
        scores[row, t] = float(h + d - h * d)
    kept = sorted(scores, key=lambda place: -scores[place])[: math.ceil(fraction * len(places))]
    found = Tip(fraction=fraction).weights(seen)
    assert {(row, t) for row, t in places if found[row, t] == 1} == {*kept}
    assert found.sum() == len(kept)


def test_tip_takes_the_first_tokens_where_all_are_alike() -> None:
    values = torch.ones(3, 9, dtype=torch.float64)
    assert Tip().weights(given(entropy=values, reverse_kl=0 * values)).sum() == 7


def test_select_verify_trusts_what_is_among_the_teachers_likeliest() -> None:
    ranks = torch.arange(9, dtype=torch.float64).expand(3, -1)
    [row, *_] = SelectVerify().weights(given(teacher_rank=ranks)).tolist()
    assert row == pytest.approx([1] * 5 + [0.01] * 4)


@pytest.fixture(scope="module")
def rollouts(make_rollouts: Callable[..., list[Rollout]]) -> list[Rollout]:
    return make_rollouts(8, seed=6)


@pytest.mark.parametrize("loss", [PolicyGradient(signal="top_k", top_k=20), ReverseKl()], ids=["sampled", "whole"])
@pytest.mark.parametrize("weighting", [Tip(), SelectVerify()], ids=["tip", "select_verify"])
def test_updates_do_not_depend_on_micro_batches(
    weighting: Weighting, loss: Loss, rollouts: list[Rollout], tiny_model: Any, tiny_student: Any
) -> None:
    teacher, objective, metrics, gradients = HfTeacher(tiny_model(1), CPU), Objective(weighting, loss), [], []
    for size in (10**6, 40):
        student = tiny_student(0, micro_batch_tokens=size)
        own = {"student": student, "objective": objective} if objective.needs_student_first(1) else {}
        scored = score(teacher, rollouts, lambda length: (0, length), signal=objective.signal, **own)
        student.optimizer.step = lambda student=student: gradients.append(
            torch.cat([each.grad.flatten() for each in student.parameters()])
        )
        heads = teacher.heads() if objective.signal.kind == "full" else None
        metrics.append(update(student, scored, objective, seeds=range(8), teacher_heads=heads))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()
    if isinstance(weighting, Tip):
        assert metrics[0]["train/kept_tokens"] == math.ceil(metrics[0]["tokens/trained"] / 2)
    else:
        assert 0.01 < metrics[0]["train/weight_mean"] < 1


def test_several_updates_of_a_batch_use_the_measures_of_before_the_first(
    rollouts: list[Rollout], tiny_model: Any, tiny_student: Any
) -> None:
    """With the teacher's distribution as the student's own, all is verified; after a large step it would not be."""
    student, objective = tiny_student(0, lr=1.0), Objective(SelectVerify(), PolicyGradient(signal="top_k", top_k=20))
    teacher = HfTeacher(tiny_model(0), CPU)
    scored = score(
        teacher, rollouts, lambda length: (0, length), signal=objective.signal, student=student, objective=objective
    )
    assert update(student, scored, objective, seeds=range(8), updates=2)["train/weight_min"] == 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["weighting=tip"], "weighting=tip: needs the teacher's distribution, and loss.signal=auto has the log-prob"),
        (["weighting=select_verify", "loss.signal=sampled"], "set loss.signal=top_k or loss.signal=full"),
        (
            ["weighting=select_verify", "loss.signal=top_k", "loss.top_k=3"],
            "loss.top_k=3: weighting=select_verify looks at the teacher's 5 likeliest tokens; raise it to 5 or more",
        ),
    ],
)
def test_a_signal_that_does_not_do_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
