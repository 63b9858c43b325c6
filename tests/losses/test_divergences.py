"""Divergences against double loops in float64 and autograd on whole logits, and as losses of an update."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.running import SMALL, iwopd, rows
from torch import Tensor
from torch.testing import assert_close

from iwopd.losses.base import Loss
from iwopd.losses.forward_kl import ForwardKl
from iwopd.losses.jsd import Jsd
from iwopd.losses.reverse_kl import ReverseKl
from iwopd.models.batch import collate
from iwopd.numerics import Divergence, chunked_divergence, forward_kl, jsd, reverse_kl
from iwopd.training.objective import Objective
from iwopd.training.update import update
from iwopd.types import Signal
from iwopd.weighting.uniform import Uniform

pytestmark = pytest.mark.cli

FULL: list[Loss] = [ReverseKl(), ForwardKl(), Jsd(), Jsd(beta=0.1), Jsd(beta=0.0), Jsd(beta=1.0)]
on_losses = pytest.mark.parametrize("loss", FULL, ids=lambda loss: f"{loss.kind} {getattr(loss, 'beta', '')}".strip())


def by_loops(loss: Loss, student: Tensor, teacher: Tensor) -> list[float]:
    def kl(left: list[float], right: list[float]) -> float:
        return sum(p * (math.log(p) - math.log(q)) for p, q in zip(left, right, strict=True))

    found = []
    for ours, theirs in zip(student.exp().tolist(), teacher.exp().tolist(), strict=True):
        beta = getattr(loss, "beta", {"forward_kl": 0.0, "reverse_kl": 1.0}.get(loss.kind))
        mixture = [beta * q + (1 - beta) * p for p, q in zip(ours, theirs, strict=True)]
        both = beta * kl(theirs, mixture) + (1 - beta) * kl(ours, mixture)
        found.append({0.0: kl(theirs, ours), 1.0: kl(ours, theirs)}.get(beta, both))
    return found


def random_logits(seed: int, width: int = 11) -> Tensor:
    return 3 * torch.randn(7, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@on_losses
def test_divergences_equal_double_loops(loss: Loss) -> None:
    student, teacher = (random_logits(seed).log_softmax(-1) for seed in (0, 1))
    assert_close(loss.divergence()(student, teacher), torch.tensor(by_loops(loss, student, teacher)).double())
    assert_close(loss.divergence()(student, student), torch.zeros(7, dtype=torch.float64))


@pytest.mark.parametrize("beta", [1e-6, 1 - 1e-6])
def test_jsd_goes_to_the_kls_at_its_ends(beta: float) -> None:
    student, teacher = (random_logits(seed).log_softmax(-1) for seed in (0, 1))
    limit = forward_kl(student, teacher) if beta < 0.5 else reverse_kl(student, teacher)
    assert_close(jsd(student, teacher, beta) / min(beta, 1 - beta), limit, rtol=1e-2, atol=0)
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        jsd(student, teacher, 1.5)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@on_losses
def test_chunks_give_the_values_and_gradients_of_whole_logits(loss: Loss, chunk: int) -> None:
    """A head that does nothing, so that hidden states are logits; the teacher's vocabulary is padded."""
    logits, theirs = random_logits(0).requires_grad_(), random_logits(1, width=13)
    targets, factors = torch.arange(7), torch.linspace(-1, 2, 7, dtype=torch.float64)
    student, teacher = logits.log_softmax(-1), theirs[:, :11].log_softmax(-1)
    expected = loss.divergence()(student, teacher)
    (gradient,) = torch.autograd.grad(factors @ expected, logits)

    def head(states: Tensor) -> Tensor:
        return states

    found = chunked_divergence(logits, theirs, targets, head, head, chunk, loss.divergence())
    assert_close(found.divergence, expected)
    assert_close(torch.autograd.grad(factors @ found.divergence, logits)[0], gradient)
    assert_close(found.reverse_kl, reverse_kl(student, teacher).detach())
    assert_close(found.logprobs, student.diagonal().detach())
    assert not any(each.requires_grad for each in found[1:])


@on_losses
def test_an_update_minimises_the_weighted_mean(
    loss: Loss, make_rollouts: Callable[..., Any], make_scored: Callable[..., Any], tiny_model: Any, tiny_student: Any
) -> None:
    teacher, student = tiny_model(1), tiny_student(0, lr=1e-3)
    scored = make_scored(make_rollouts(6, seed=2), teacher, signal=Signal("full"))
    batch = collate(scored, range(6))
    with torch.no_grad():
        logits = student.lm(batch.tokens, lambda lm, states, targets: lm.head(states)).log_softmax(-1)
        theirs = teacher.head(batch.teacher_hidden[""]).log_softmax(-1)
    divergence: Divergence = loss.divergence()
    steps = [
        update(student, scored, Objective(Uniform(), loss), seeds=range(6), teacher_heads={"": teacher.head})
        for _ in range(4)
    ]
    assert steps[0]["train/loss"] == pytest.approx(divergence(logits, theirs).mean().item(), rel=1e-5)
    assert steps[0]["train/reverse_kl"] == pytest.approx(reverse_kl(logits, theirs).mean().item(), rel=1e-5)
    losses = [step["train/loss"] for step in steps]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.process
@pytest.mark.usefixtures("smoke_models")
def test_a_run_is_trained_with_one(tmp_path: Any) -> None:
    run = tmp_path / "run"
    settings = (*SMALL, "run.steps=2", "eval.every=0", "benchmark=[]", "loss=jsd", "loss.beta=0.2")
    assert iwopd("train", *[item for item in settings if "benchmarks" not in item], f"run.dir={run}") == 0
    assert all(math.isfinite(row["train/loss"]) for row in rows(run / "metrics.jsonl") if "train/loss" in row)
