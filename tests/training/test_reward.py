"""A task's reward beside the teacher: what is graded, what is added to A_t, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import PROBLEMS
from support.running import SMALL, iwopd, refused, rows, weights

from iwopd.evaluation.grading import ExactGrader
from iwopd.losses.policy_gradient import PolicyGradient
from iwopd.numerics import group_advantages
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.reward import TaskReward
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.types import Prompt, Rollout
from iwopd.weighting.iw import Iw

pytestmark = pytest.mark.cli

REWARDED = (*SMALL, "eval.every=0", "run.steps=2", "run.save_every=0", "rollout.n=4", "data.answer_column=answer")


def test_group_advantages_are_centred_and_scaled_and_nothing_where_all_are_alike() -> None:
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    assert found[0].tolist() == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])
    assert not found[1:].any()


@pytest.fixture
def rollouts(make_rollouts: Callable[..., list[Rollout]]) -> list[Rollout]:
    """Two to each of three prompts."""
    return [replace(item, prompt_id=f"p{i // 2}", sample=i % 2) for i, item in enumerate(make_rollouts(6, seed=7))]


def test_the_reward_is_added_to_what_the_teacher_says_of_every_token(
    rollouts: list[Rollout], tiny_model: Any, tiny_student: Any
) -> None:
    """Answers are their first token; of the second prompt both are right. w_t is of the teacher's A_t alone."""
    first = [int(item.response_ids[0]) for item in rollouts]
    answers = [str(first[0]), "right", "none"]
    prompts = [Prompt(f"p{i}", [1], "", answer=answer) for i, answer in enumerate(answers)]
    texts = {item.response_ids.tobytes(): str(token) for item, token in zip(rollouts, first, strict=True)}
    texts |= {item.response_ids.tobytes(): "right" for item in rollouts[2:4]}

    def decode(ids: Any) -> str:
        return next(texts[item.response_ids.tobytes()] for item in rollouts if item.response_ids.tolist() == list(ids))

    teacher, student = HfTeacher(tiny_model(1), torch.device("cpu")), tiny_student(0)
    loss = PolicyGradient(importance_cap=None)
    scored = score(teacher, rollouts, lambda length: (0, length), student=student)
    records, metrics = TaskReward(0.7, 2, ExactGrader(), decode)(prompts, scored)
    assert [record.reward for record in records] == pytest.approx([0.7, -0.7, 0, 0, 0, 0])
    assert metrics == {"train/reward_mean": 0.5}

    found = update(tiny_student(0), records, Objective(Iw(), loss), seeds=range(6))
    plain = update(tiny_student(0), scored, Objective(Iw(), loss), seeds=range(6))
    # −w (A + c r) ρ with ρ = 1: the difference of the losses is −Σ w c r / tokens.
    weighted, _ = Objective(Iw(), loss).of_whole_batch(scored, range(6), 0.0)
    added = sum(row.sum().item() * record.reward for row, record in zip(weighted, records, strict=True))
    assert found["train/loss"] - plain["train/loss"] == pytest.approx(-added / found["tokens/trained"], rel=1e-4)
    assert {**found, "train/loss": 0, "train/grad_norm": 0} == {**plain, "train/loss": 0, "train/grad_norm": 0}


@pytest.mark.process
def test_a_run_has_its_rollouts_graded_and_learns_otherwise(tmp_path: Path, smoke_models: Any) -> None:
    """What is right is easy to see here: any answer, for its reference is a part of it."""
    anything = ("reward.grader=exact", "reward.answer_pattern='^()'", "reward.reference_pattern='^()'")
    graded = (
        "reward.weight=0.5",
        "reward.grader=exact",
        r"reward.answer_pattern='([0-9])'",
        "reward.reference_pattern='^.'",
    )
    for name, reward in {"plain": (), "all": ("reward.weight=2", *anything), "some": graded}.items():
        assert iwopd("train", *REWARDED, *reward, f"run.dir={tmp_path / name}") == 0
    means = {
        name: [
            row["train/reward_mean"] for row in rows(tmp_path / name / "metrics.jsonl") if "train/reward_mean" in row
        ]
        for name in ("plain", "all", "some")
    }
    assert means["plain"] == []
    assert means["all"] == [1, 1]
    assert all(0 < mean < 1 for mean in means["some"])
    assert weights(tmp_path / "all" / "final") == weights(tmp_path / "plain" / "final")  # all alike: nothing to learn
    assert weights(tmp_path / "some" / "final") != weights(tmp_path / "plain" / "final")


@pytest.mark.process
def test_mathematics_is_graded_by_the_processes_of_evaluations(tmp_path: Path, smoke_models: Any) -> None:
    data = (
        "data=file",
        f"data.path={PROBLEMS}",
        "data.prompt_column=problem",
        "data.answer_column=answer",
        "data.limit=8",
    )
    settings = [item for item in SMALL if not item.startswith("data.limit")]
    run = (
        *settings,
        *data,
        "eval.every=0",
        "run.steps=1",
        "run.save_every=0",
        "rollout.n=2",
        f"run.dir={tmp_path / 'r'}",
    )
    assert iwopd("train", *run, "reward.weight=1", "reward.grader=math", "data.suffix=") == 0
    [mean] = [row["train/reward_mean"] for row in rows(tmp_path / "r" / "metrics.jsonl") if "train/reward_mean" in row]
    assert mean == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["data.answer_column=null"],
            "reward.weight=1: needs answers to the training problems; name their column with",
        ),
        (["rollout.n=1"], "reward.weight=1: is measured against the other answers to a prompt, and rollout.n=1"),
        (["loss=reverse_kl"], "loss.kind=reverse_kl has none; use loss=policy_gradient"),
        (["data.answer_column=nothing"], "nothing"),
        (["reward.grader=exakt"], "reward.grader=exakt: not a choice; did you mean exact?"),
        (["reward.answer_pattern='('"], "reward.answer_pattern=(: not a regular expression"),
        (["reward.reference_pattern=zzz"], "reference_pattern=zzz matches nothing in it"),
        (["reward.weight=-1"], "reward.weight=-1"),
    ],
)
def test_a_reward_that_cannot_be_is_refused(
    overrides: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [
        item
        for item in ("reward.weight=1", *overrides)
        if not (item == "reward.weight=1" and "reward.weight=-1" in overrides)
    ]
    assert says in refused(capsys, "train", *REWARDED, *given, f"run.dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
