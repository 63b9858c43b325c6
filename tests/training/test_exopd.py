"""ExOPD (arXiv 2602.12125): beyond the teacher, away from the base model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.running import SMALL, iwopd, refused, rows, weights, without_times
from torch.testing import assert_close

from iwopd.losses.policy_gradient import PolicyGradient
from iwopd.numerics import exopd_advantage, iw_weights, opd_advantage
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.weighting.iw import Iw
from iwopd.weighting.uniform import Uniform

CPU = torch.device("cpu")
UNIFORM = Uniform()
IW = Iw(gamma=0.5)


def random_logprobs(seed: int) -> torch.Tensor:
    return -torch.rand(3, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5


def test_by_hand() -> None:
    """λ (log π_T − log π_base) − (log π_θ − log π_base) = 1.25 · (−1 + 3) − (−2 + 3) = 1.5."""
    teacher, student, base = (torch.tensor([[value, 0.0]]) for value in (-1.0, -2.0, -3.0))
    assert exopd_advantage(teacher, student, base, torch.tensor([[True, False]]), 1.25).tolist() == [[1.5, 0.0]]


def test_lambda_one_is_opd_and_the_base_then_drops_out() -> None:
    teacher, student, mask = random_logprobs(0), random_logprobs(1), torch.ones(3, 7, dtype=torch.bool)
    for seed in (2, 3):
        found = exopd_advantage(teacher, student, random_logprobs(seed), mask, 1.0)
        assert_close(found, opd_advantage(teacher, student, mask), rtol=0, atol=1e-14)


def test_before_training_it_is_opd_times_lambda() -> None:
    """The student is the base: log π_θ = log π_base."""
    teacher, student, mask = random_logprobs(0), random_logprobs(1), torch.ones(3, 7, dtype=torch.bool)
    found = exopd_advantage(teacher, student, student, mask, 1.25)
    assert_close(found, 1.25 * opd_advantage(teacher, student, mask), rtol=1e-14, atol=0)


def test_masked_places_stay_out_of_it() -> None:
    broken = torch.tensor([[0.0, float("nan")]])
    mask = torch.tensor([[True, False]])
    assert exopd_advantage(broken, broken, broken, mask).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("weighting", [UNIFORM, IW], ids=["uniform", "iw"])
def test_the_update_follows_the_formula(
    weighting: Any, tiny_model: Callable[..., Any], tiny_student: Callable[..., Any], make_rollouts: Callable[..., Any]
) -> None:
    """Gradient of −mean(w·A·log π_θ), in which A and w are made here, in plain PyTorch, from ExOPD's advantages."""
    rollouts = make_rollouts(5, 3)
    teacher, base = (HfTeacher(tiny_model(seed), CPU) for seed in (1, 2))
    scored = score(teacher, rollouts, lambda length: (0, length), base=base)
    student = tiny_student(0, lr=1.0)
    found: list[torch.Tensor] = []
    student.optimizer.step = lambda: found.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
    settings = PolicyGradient(importance_cap=None, exopd_lambda=1.25)
    metrics = update(student, scored, Objective(weighting, settings), seeds=range(5))

    reference = tiny_student(0).lm.model
    total, tokens, gaps = torch.zeros(()), 0, []
    for record in scored:
        ids = record.rollout.ids()
        count = len(record.rollout.response_ids)
        logits = reference(torch.tensor(ids)[None].long()).logits[0, -count - 1 : -1].log_softmax(-1)
        own = logits.gather(-1, torch.tensor(record.rollout.response_ids).long()[:, None]).squeeze(-1)
        of_teacher, of_base = torch.tensor(record.teacher_logprobs), torch.tensor(record.base_logprobs)
        advantage = 1.25 * (of_teacher - of_base) - (own.detach() - of_base)
        weight = torch.ones(count)
        if weighting is IW:
            weight = iw_weights(advantage[None], torch.ones(1, count, dtype=torch.bool))[0]
        total = total - (weight * advantage * own).sum()
        tokens += count
        gaps.append(own.detach() - of_teacher)
    (total / tokens).backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters()])
    assert expected.norm() > 0
    assert (found[0] - expected).norm() <= 1e-5 * expected.norm()
    assert metrics["train/reverse_kl"] == pytest.approx(float(torch.cat(gaps).mean()), rel=1e-5)  # to the teacher


def test_without_the_bases_logprobs_there_is_no_silent_stand_in(
    tiny_model: Callable[..., Any], tiny_student: Callable[..., Any], make_rollouts: Callable[..., Any]
) -> None:
    scored = score(HfTeacher(tiny_model(1), CPU), make_rollouts(2, 0), lambda length: (0, length))
    with pytest.raises(ValueError, match="base model's log-probs"):
        update(tiny_student(0), scored, Objective(UNIFORM, PolicyGradient(exopd_lambda=1.25)), seeds=[0, 1])


SHORT = (*SMALL, "run.steps=2", "eval.every=0", "run.save_every=1", "weighting=uniform", "base.dtype=float32")


@pytest.mark.process
def test_a_run_goes_beyond_opd_and_resumes_exactly(tmp_path: Path) -> None:
    """The base is the student before training, also when the student has moved on and the run is resumed."""
    whole, part, plain = (tmp_path / name for name in ("whole", "part", "plain"))
    assert iwopd("train", *SHORT, "loss.exopd_lambda=1.25", f"run.dir={whole}") == 0
    assert iwopd("train", *SHORT, f"run.dir={plain}") == 0
    first, _ = (rows(folder / "metrics.jsonl")[1] for folder in (whole, plain))
    assert first["train/reverse_kl"] == pytest.approx(rows(plain / "metrics.jsonl")[1]["train/reverse_kl"], rel=1e-6)
    ratio = first["train/advantage_mean"] / rows(plain / "metrics.jsonl")[1]["train/advantage_mean"]
    assert ratio == pytest.approx(1.25, rel=1e-4)  # the first step: student = base
    assert weights(whole / "final") != weights(plain / "final")

    import shutil

    shutil.copytree(whole, part)
    shutil.rmtree(part / "final")
    shutil.rmtree(part / "checkpoints/step-000002")
    assert iwopd("train", *SHORT, "loss.exopd_lambda=1.25", f"run.dir={part}", "run.resume=true") == 0
    assert weights(part / "final") == weights(whole / "final")
    steps = [
        [row for row in without_times(rows(folder / "metrics.jsonl")) if "train/loss" in row]
        for folder in (part, whole)
    ]
    assert steps[0] == steps[1]


@pytest.mark.cli
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["loss.exopd_lambda=1.25", "loss=reverse_kl"], "ExOPD is a policy gradient"),
        (["loss.exopd_lambda=-1"], "loss.exopd_lambda=-1.0: must be at least 0"),
        (["loss.exopd_lambda=1.25", "base.path=/none"], "base.path=/none: does not exist"),
        (["loss.exopd_lambda=1.25", "base.device=tpu"], "base.device=tpu: not a device"),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "train", *SMALL, *overrides)
