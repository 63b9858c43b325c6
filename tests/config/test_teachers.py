"""Prompts of the teacher's own, and a teacher that is the student: what is refused, and how a prompt is rendered."""

import json
import shlex
from pathlib import Path

import pytest
from support.composing import composed
from support.running import SMALL, iwopd, refused

from iwopd.config import DataConfig
from iwopd.config.template import columns, fill, places
from iwopd.data import TeacherTemplate, load_rows, render
from iwopd.errors import ConfigError, DataError
from iwopd.preflight.problems import training_rows
from iwopd.toy.tokenizer import make_tokenizer

SELF = ["teacher=self", "teacher.prompt_template='{prompt} {answer}'"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["teacher=self"], "teacher.prompt_template=null: teacher.path=self would say"),
        ([*SELF, "teacher.prompt_template='{prompt}'"], "teacher.prompt_template={prompt}: teacher.path=self would"),
        ([*SELF, "teacher.prompt_template=hint"], "teacher.prompt_template=hint: has no place for a column"),
        ([*SELF, "student.lora.rank=4"], "teacher.path=self: does not go with adapters (student.lora.rank=4)"),
        ([*SELF, "teacher.weights=mean"], "teacher.weights=mean: not a choice"),
        ([*SELF, "teacher.weights=average", "scoring=vllm"], "teacher.weights=average: follow the student's"),
        ([*SELF, "teacher.weights=average", "teacher.dtype=bfloat16"], "teacher.dtype=bfloat16: an average moves"),
        ([*SELF, "teacher.weights=current", "teacher.dtype=bfloat16"], "teacher.dtype=bfloat16: teacher.weights=curr"),
        ([*SELF, "teacher.weights=current", "teacher.offload=true"], "teacher.offload=true: teacher.weights=current"),
        ([*SELF, "teacher.weights=current", "teacher.device=cpu"], "teacher.device=cpu: teacher.weights=current"),
        (
            [*SELF, "teacher.weights=current", "loss=jsd", "optim.updates_per_batch=2"],
            "optim.updates_per_batch=2: teacher.weights=current",
        ),
        (["teacher.weights=average"], "teacher.weights=average: teacher.path=toy://standard/teacher has weights"),
        (["+teachers.b.path=self"], "teachers.b.prompt_template=null: teachers.b.path=self would say"),
    ],
    ids=lambda given: given[-1] if isinstance(given, list) else "",
)
def test_what_cannot_work_is_one_line(given: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*given)
    (line,) = caught.value.problems
    assert line.startswith(said)


def test_what_to_type_instead_can_be_typed_in_a_shell() -> None:
    with pytest.raises(ConfigError) as caught:
        composed("teacher=self")
    _, _, typed = caught.value.problems[0].partition("e.g. ")
    assert composed("teacher=self", *shlex.split(typed)).teacher.prompt_template == "{prompt} Answer: {answer}"


@pytest.mark.cli
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "teacher.prompt_template, {hint}: {file} has no such column; it has prompt, answer, steps"),
        (["teacher.prompt_template='{steps}'"], "{file}: row 1, column steps: not a text or a number, but a list, and"),
        (
            ["teacher.prompt_template='{answer}'"],
            "{file}: row 3, column answer: null, and teacher.prompt_template, {ans",
        ),
    ],
)
def test_a_column_that_is_not_there_is_refused_before_anything_loads(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    answers = [1, 2, None]
    file.write_text("".join(json.dumps({"prompt": "a", "answer": each, "steps": [1]}) + "\n" for each in answers))
    monkeypatch.setattr("iwopd.assembly.training.training_run", lambda *rest: pytest.fail("something loads"))
    run = [
        *("+experiment=smoke", "teacher=self", "teacher.prompt_template='{prompt}{hint}'", "data=file"),
        *(f"data.path={file}", "data.batch_size=1", "benchmark=[]", f"run.dir={tmp_path / 'run'}"),
    ]
    line = refused(capsys, "train", *run, *given)
    assert line.startswith("iwopd: " + said.replace("{file}", str(file)))
    assert not (tmp_path / "run").exists()


@pytest.mark.cli
def test_a_prompt_too_long_for_the_teacher_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a", "hint": "b" * 5000}) + "\n")
    run = [
        *("+experiment=smoke", "teacher.prompt_template='{prompt}{hint}'", "data=file", f"data.path={file}"),
        *("data.batch_size=1", "benchmark=[]", f"run.dir={tmp_path / 'run'}"),
    ]
    line = refused(capsys, "train", *run)
    assert "rollout.max_tokens=48: with a prompt of 5003 tokens more than the 4096 the teacher can attend to" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.process
def test_doctor_prints_three_prompts_of_the_teachers(capsys: pytest.CaptureFixture[str]) -> None:
    template = "teacher.prompt_template='{prompt} <{answer}>'"
    assert iwopd("doctor", *SMALL, template, "doctor.live=false", "run.dir=/nowhere/run") in (0, 1)
    shown = [line for line in capsys.readouterr().out.splitlines() if " of teacher, " in line]
    assert [line.split()[:2] for line in shown] == [["prompt", f"train-{number}"] for number in (1, 2, 3)]
    assert all(line.endswith(">'<|assistant|>'") or line.rstrip("'").endswith("><|assistant|>") for line in shown)


# ---------------------------------------------------------------------------------------------- the template


def test_places_and_braces() -> None:
    template = r"{prompt} {a.b} {{answer}} \boxed{} x^{2} {prompt} {Lösung 1}"
    assert places(template) == ["prompt", "a.b", "Lösung 1"]
    assert columns(template) == ["a.b", "Lösung 1"]
    assert fill(template, str.upper) == r"PROMPT A.B {answer} \boxed{} x^{2} PROMPT LÖSUNG 1"


def test_a_filled_text_is_not_filled_again() -> None:
    assert fill("{prompt}{answer}", {"prompt": "{answer}", "answer": "{prompt}"}.__getitem__) == "{answer}{prompt}"


def test_the_teachers_prompt_is_rendered_as_the_students_is() -> None:
    source = DataConfig(path="x", prompt_column="q", system="S", template="T {prompt}", suffix="!", teacher_column="by")
    turns = (("user", "A"), ("assistant", "B"), ("user", "C"))
    chat = [{"role": role, "content": content} for role, content in turns]
    given = [
        {"q": "1+1", "answer": 2, "extra": {"hint": "add"}, "by": None},
        {"q": chat, "answer": 3, "extra": {"hint": "sub"}, "by": "other"},
        {"q": "2+2", "answer": 4, "extra": {"hint": "x"}, "by": "plain"},
    ]
    templates = {
        None: TeacherTemplate("teacher.prompt_template", "{prompt} ({answer}, {extra.hint})"),
        "other": TeacherTemplate("teachers.other.prompt_template", "{answer}? {prompt}"),
    }
    tokenizer = make_tokenizer()
    first, second, third = render(given, source, tokenizer, templates=templates)
    assert first.text == "<|user|>S\nT 1+1!<|assistant|>"
    assert tokenizer.decode(first.teacher_ids) == "<|user|>S\nT 1+1! (2, add)<|assistant|>"
    assert tokenizer.decode(second.teacher_ids) == "<|user|>S\nA<|assistant|>B<|eos|><|user|>3? T C!<|assistant|>"
    assert third.teacher_ids is None


def test_only_what_its_teacher_needs_is_asked_of_a_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "by": "hinted", "hint": "h"}\n{"prompt": "b", "by": null, "hint": null}\n')
    given = ["data=file", f"data.path={file}", "data.teacher_column=by", "+teachers.hinted.path=toy://standard/teacher"]
    config = composed(*given, "+teachers.hinted.prompt_template='{prompt}{hint}'")
    assert len(training_rows(config)["data"]) == 2
    config.teacher.prompt_template = "{prompt}{hint}"
    with pytest.raises(DataError, match=r"row 2, column hint: null, and teacher.prompt_template, \{hint\} needs it"):
        training_rows(config)
    assert len(load_rows(config.data, "data", answers=False)) == 2
