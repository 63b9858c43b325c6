"""A teacher that is the student itself: frozen, an average, or current; in runs that learn, stop and resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.running import iwopd, rows, weights, without_times

from iwopd.models.language_model import LanguageModel
from iwopd.numerics import Head
from iwopd.scoring.hf import HfTeacher
from iwopd.scoring.self_teacher import AverageTeacher, CurrentTeacher

CPU = torch.device("cpu")
WHOLE = (lambda length: (0, length),)


def nudge(student) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))


def test_an_average_is_elementwise_and_leaves_the_student_alone(tiny_model, tiny_student) -> None:
    student, teacher = tiny_student(0), AverageTeacher(tiny_model(0), CPU, decay=0.75, key="teacher")
    expected = {name: value.clone() for name, value in student.model.named_parameters()}
    for _ in range(3):
        nudge(student)
        before = {name: value.clone() for name, value in student.model.named_parameters()}
        teacher.follow(student)
        for name, value in student.model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * value.detach()
            assert torch.equal(value, before[name])
    for name, value in teacher.model.model.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
        assert not value.requires_grad


def test_current_weights_are_the_students_which_stays_trainable(tiny_student, make_rollouts) -> None:
    student, rollouts = tiny_student(0), make_rollouts(4, seed=1)
    teacher = CurrentTeacher(student.lm, CPU)
    before = teacher.score(rollouts, *WHOLE)
    nudge(student)
    after, plain = teacher.score(rollouts, *WHOLE), HfTeacher(student.lm, CPU)
    assert before != after
    assert after == plain.score(rollouts, *WHOLE)
    assert teacher.model.model is student.model


def test_its_head_takes_no_gradient(tiny_student) -> None:
    student = tiny_student(0)
    head: Head = CurrentTeacher(student.lm, CPU).head()
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not head(torch.randn(2, 32, requires_grad=True)).requires_grad


# ---------------------------------------------------------------------------------------------- runs

RUN = [
    *("+experiment=smoke", "student=hf", "student.path=toy://hinted_smoke/student", "teacher=self"),
    *("teacher.prompt_template='{prompt}\n{answer}'", "eval.greedy=false", "run.samples=2"),
]
SHORT = [*RUN, "run.steps=4", "run.save_every=2", "eval.every=2", "data.batch_size=8", "rollout.max_tokens=24"]
SHORT += ["data.limit=64", "eval.benchmarks.smoke.limit=8"]


@pytest.mark.process
def test_a_student_that_reads_the_answer_teaches_itself_without_it(tmp_path: Path) -> None:
    given = ["run.steps=14", "eval.every=0", "run.save_every=0", "data.batch_size=32", "optim.lr=1e-3"]
    assert iwopd("train", *RUN, *given, f"run.dir={tmp_path / 'run'}") == 0
    first, last = (row for row in rows(tmp_path / "run" / "metrics.jsonl") if "eval/accuracy" in row)
    assert last["eval/accuracy"] > first["eval/accuracy"] + 0.25
    about = (tmp_path / "run" / "final" / "README.md").read_text()
    assert "itself (frozen weights), which read prompts of its own" in about


@pytest.mark.process
@pytest.mark.parametrize("kind", ["average", "current"])
def test_a_resumed_run_ends_in_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    given = [*SHORT, f"teacher.weights={kind}", "teacher.decay=0.5"]
    assert iwopd("train", *given, f"run.dir={whole}") == 0
    shutil.copytree(whole, half)
    shutil.rmtree(half / "final")
    shutil.rmtree(half / "checkpoints" / "step-000004")
    assert iwopd("train", *given, f"run.dir={half}", "run.resume=true") == 0
    assert weights(half / "final") == weights(whole / "final")
    assert without_times(rows(half / "metrics.jsonl")) == without_times(rows(whole / "metrics.jsonl"))
    assert without_times(rows(half / "samples.jsonl")) == without_times(rows(whole / "samples.jsonl"))
    kept = [run / "checkpoints" / "step-000004" / "teacher" for run in (whole, half)]
    assert [folder.is_dir() for folder in kept] == [kind == "average"] * 2
    if kind == "average":
        assert weights(kept[0]) == weights(kept[1]) != weights(whole / "final")


@pytest.mark.process
def test_frozen_weights_are_those_of_a_teacher_named_by_its_folder(tmp_path: Path) -> None:
    """And with several teachers each problem's is asked its own way; a loss over the vocabulary takes either."""
    folder = "toy://hinted_smoke/student"
    named = ["teacher=hf", f"teacher.path={folder}", "teacher.dtype=float32"]
    for name, more in {
        "self": ["loss=reverse_kl"],
        "named": ["loss=reverse_kl", *named],
        "several": ["loss=reverse_kl", f"+teachers.other.path={folder}", "+teachers.other.dtype=float32"],
    }.items():
        assert iwopd("train", *SHORT, *more, "run.steps=2", f"run.dir={tmp_path / name}") == 0
    assert weights(tmp_path / "self" / "final") == weights(tmp_path / "named" / "final")
    assert weights(tmp_path / "self" / "final") == weights(tmp_path / "several" / "final")


@pytest.mark.process
def test_diagnose_asks_the_teacher_its_own_way(tmp_path: Path) -> None:
    given = [*SHORT, "teacher.weights=current", "diagnose.prompts=8", "diagnose.continuations=4"]
    assert iwopd("diagnose", *given, f"run.dir={tmp_path / 'told'}") == 0
    (told,) = json.loads((tmp_path / "told" / "diagnose.json").read_text())["students"]
    assert told["mean"]["abs_advantage"] > 0.05  # the same weights, and another prompt
    assert told["continuation"]["teacher"]["accuracy"][0] > told["continuation"]["student"]["accuracy"][0] - 0.01


def test_a_model_stays_trainable_after_it_was_current(tiny_model) -> None:
    lm: LanguageModel = tiny_model(0)
    lm.model.get_input_embeddings().weight.requires_grad_(False)
    CurrentTeacher(lm, CPU)
    frozen = [name for name, value in lm.model.named_parameters() if not value.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]
