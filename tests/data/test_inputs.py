"""What a run reads, kept with it: changed in any way, a resumed run says what, and does not resume."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from support.running import SMALL, iwopd, refused, rows

from iwopd.preflight import digests
from iwopd.preflight.digests import changes, file_digest, model_digest, problem_digests
from iwopd.toy import toy_rows
from iwopd.types import Prompt

pytestmark = pytest.mark.process

TEMPLATE = "{{ strftime_now('%d %b %Y %H:%M:%S') }}{% for message in messages %}{{ message.content }}{% endfor %}"
NO_DATE = "{% for message in messages %}{{ message.content }}{% endfor %}:"


class World:
    """Models and data of a run, in files of one folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def made(cls, folder: Path, models: dict[str, Path]) -> "World":
        world = cls(folder)
        for role, model in models.items():
            shutil.copytree(model, folder / role)
        for split, name in (("train", "data"), ("test", "benchmark")):
            world.write(name, toy_rows("data.path", "toy://smoke", split)[:16])
        return world

    def moved(self, folder: Path) -> "World":
        shutil.copytree(self.folder, folder)
        return World(folder)

    def write(self, name: str, found: list[dict]) -> None:
        (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))

    def edit(self, name: str, change: Callable[[list[dict]], object]) -> None:
        found = rows(self.folder / f"{name}.jsonl")
        change(found)
        self.write(name, found)

    def train_further(self, role: str) -> None:
        """Other weights of the same sizes."""
        file = self.folder / role / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"] *= 1.0001
        save_file(tensors, file, metadata={"format": "pt"})

    @property
    def settings(self) -> list[str]:
        return [
            *SMALL,
            *(f"{role}.path={self.folder / role}" for role in ("student", "teacher")),
            *(f"data.path={self.folder / 'data.jsonl'}", "data.limit=null"),
            f"eval.benchmarks.smoke.path={self.folder / 'benchmark.jsonl'}",
        ]


@pytest.fixture(scope="module")
def began(tmp_path_factory: pytest.TempPathFactory, smoke_models: dict[str, Path]) -> World:
    """A world, and in run/ what a run left that read it."""
    world = World.made(tmp_path_factory.mktemp("world"), smoke_models)
    (world.folder / "student" / "chat_template.jinja").write_text(NO_DATE)
    assert iwopd("train", *world.settings, "run.steps=0", f"run.dir={world.folder / 'run'}") == 0
    return world


def other_template(world: World) -> None:
    (world.folder / "student" / "chat_template.jinja").write_text(NO_DATE.replace(":", ";"))


CHANGES: dict[str, tuple[Callable[[World], object], list[str]]] = {
    "a problem, of the same length": (
        lambda world: world.edit("data", lambda rows: rows[2].update(prompt=rows[2]["prompt"].swapcase())),
        ["data.path=", "1 of 16 problems are not what they were (train-3)"],
    ),
    "a problem less": (lambda world: world.edit("data", lambda rows: rows.pop()), ["1 of 16 problems are gone"]),
    "a problem more": (
        lambda world: world.edit("data", lambda rows: rows.append(rows[0])),
        ["1 problems are new (train-17)"],
    ),
    "an answer of a benchmark": (
        lambda world: world.edit("benchmark", lambda rows: rows[4].update(answer="zz")),
        ["eval.benchmarks.smoke.path=", "1 of 8 problems are not what they were (test-5)"],
    ),
    "the teacher's weights": (
        lambda world: world.train_further("teacher"),
        ["teacher.path=", "has another model.safetensors"],
    ),
    "the student's first weights": (
        lambda world: world.train_further("student"),
        ["student.path=", "has another model.safetensors"],
    ),
    "the chat template": (
        other_template,
        ["student.path=", "has another chat_template.jinja", "16 of 16 problems are not what they were"],
    ),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES.keys())
def test_a_resumed_run_refuses_other_inputs_and_names_them(
    change: Callable[[World], object],
    says: list[str],
    began: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The world has moved to another folder too, which alone is no change."""
    moved = began.moved(tmp_path / "moved")
    change(moved)
    settings = (*moved.settings, "run.steps=0", f"run.dir={moved.folder / 'run'}")
    line = refused(capsys, "train", *settings, "run.resume=true")
    for part in says:
        assert part in line
    assert line.count(".path=") == (3 if "chat_template" in line else 1)  # nothing else is said to have changed


def test_the_same_inputs_elsewhere_are_the_same_and_extra_files_do_not_count(began: World, tmp_path: Path) -> None:
    moved = began.moved(tmp_path / "moved")
    (moved.folder / "teacher" / "README.md").write_text("a card")
    run = moved.folder / "run"
    assert iwopd("train", *moved.settings, "run.steps=0", f"run.dir={run}", "run.resume=true") == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["teacher"]["path"] == str(moved.folder / "teacher")


def test_what_it_read_may_be_forgotten_on_purpose(began: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(began.folder / "run", run)
    (run / "inputs.json").unlink()
    assert iwopd("train", *began.settings, "run.steps=0", f"run.dir={run}", "run.resume=true") == 0
    assert (run / "inputs.json").exists()


def test_an_evaluation_refuses_another_answer(began: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = began.moved(tmp_path / "moved")
    settings = (*moved.settings, f"eval.model={moved.folder / 'student'}", f"run.dir={tmp_path / 'eval'}")
    assert iwopd("eval", *settings) == 0
    moved.edit("benchmark", lambda rows: rows[0].update(answer="zz"))
    assert "problems are not what they were (test-1)" in refused(capsys, "eval", *settings, "run.resume=true")


def test_a_template_that_prints_the_time_prints_the_start_of_the_run(
    smoke_models: dict[str, Path], tmp_path: Path
) -> None:
    world = World.made(tmp_path, smoke_models)
    (tmp_path / "student" / "chat_template.jinja").write_text(TEMPLATE)
    run = tmp_path / "run"
    settings = (*world.settings, "run.steps=2", "eval.every=1", "run.save_every=1", f"run.dir={run}")
    assert iwopd("train", *settings) == 0
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "step-000002")
    time.sleep(1.1)
    assert iwopd("train", *settings, "run.resume=true") == 0
    asked = {row["step"]: row["prompt"] for row in rows(run / "samples.jsonl")}
    assert asked[2] == asked[1] == asked[0]


def test_the_date_that_templates_print_can_be_set(smoke_models: dict[str, Path], tmp_path: Path) -> None:
    world = World.made(tmp_path, smoke_models)
    (tmp_path / "student" / "chat_template.jinja").write_text(TEMPLATE)
    assert iwopd("train", *world.settings, "run.steps=0", f"run.dir={tmp_path / 'run'}", "run.date=2025-01-31") == 0
    assert all(row["prompt"].startswith("31 Jan 2025 00:00:00") for row in rows(tmp_path / "run" / "samples.jsonl"))


# ---------------------------------------------------------------------------------------------- digests alone


@pytest.mark.unit
def test_of_a_large_file_every_tensor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(digests, "WHOLE", 1000)
    tensors = {f"layer.{index}.weight": torch.randn(64, 64) for index in range(40)}
    found = set()
    for index in [None, *range(40)]:
        name = f"layer.{index}.weight"
        changed = tensors if index is None else tensors | {name: tensors[name] + 1e-4 * torch.randn(64, 64)}
        save_file(changed, tmp_path / "model.safetensors")
        found.add(file_digest(tmp_path / "model.safetensors"))
        torch.save(changed, tmp_path / "pytorch_model.bin")
        found.add(file_digest(tmp_path / "pytorch_model.bin"))
    assert len(found) == 2 * 41


@pytest.mark.unit
def test_of_two_formats_the_one_that_is_read_counts(smoke_models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(smoke_models["student"], folder)
    before = model_digest(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert model_digest(str(folder)) == before


@pytest.mark.unit
def test_of_a_hub_model_the_commit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--me--model"
    (cached / "refs").mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        (cached / "snapshots" / commit).mkdir(parents=True)
        (cached / "snapshots" / commit / "config.json").write_text("{}")
        (cached / "refs" / "main").write_text(commit)
        found.append({"models": {"teacher.path": {"path": "me/model", **model_digest("me/model")}}, "problems": {}})
    assert changes(found[0], found[0]) == []
    (text,) = changes(*found)
    assert text.startswith("teacher.path=me/model: is not what it was, commit aaaa")
    assert f"set teacher.revision={'a' * 40}" in text
    assert model_digest("me/model", "a" * 40) == {"commit": "a" * 40}


@pytest.mark.unit
def test_order_teachers_answers_and_tests_count_where_they_matter() -> None:
    prompts = [Prompt("a", [1], ""), Prompt("b", [2], "")]

    def differing(now: list[Prompt], **options: bool) -> list[str]:
        pair = [{"x": {"path": "p", "digests": problem_digests(each, **options)}} for each in (prompts, now)]
        return changes({"models": {}, "problems": pair[0]}, {"models": {}, "problems": pair[1]})

    assert differing(prompts[::-1]) == ["x.path=p: its problems are in another order"]
    assert differing([prompts[0], Prompt("b", [2], "", teacher="t")])
    assert not differing([prompts[0], Prompt("b", [2], "", answer="3")])
    assert differing([prompts[0], Prompt("b", [2], "", answer="3")], graded=True)
    assert differing([prompts[0], Prompt("b", [2], "", row={"test": "x"})], tested=True)
