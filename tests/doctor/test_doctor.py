"""`iwopd doctor` as a user runs it: exit status, findings, and what goes on after a check has failed."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support.paths import DATA, PROBLEMS
from support.running import SMALL, iwopd, process, refused

from iwopd.config.gpus import Card

pytestmark = pytest.mark.cli

MODELS = DATA / "models"

Examined = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examined:
    """Runs it on the smallest pair; exit status and doctor.json."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "doctor.json"

    def run(*overrides: str) -> tuple[int, dict[str, Any]]:
        status = iwopd("doctor", *SMALL, f"doctor.json={file}", *overrides)
        return status, json.loads(file.read_text())

    return run


def texts(report: dict[str, Any], level: str, title: str = "") -> list[str]:
    return [
        finding["text"]
        for section in report["sections"]
        for finding in section["findings"]
        if finding["level"] == level and section["title"].startswith(title)
    ]


def titles(report: dict[str, Any]) -> list[str]:
    return [section["title"] for section in report["sections"]]


# ---------------------------------------------------------------------------------------------- what works


@pytest.mark.process
def test_a_pair_that_works(doctor: Examined, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = doctor()
    assert (status, report["works"]) == (0, True)
    assert texts(report, "problem") == texts(report, "warning") == []
    assert len([text for text in texts(report, "note", "Data") if text.startswith("prompt train-")]) == 3
    tried = " ".join(texts(report, "ok", "Live check"))
    assert "engine and trainer agree" in tried
    assert "the student as its own teacher: largest |A| 0 nats" in tried
    assert [place["stage"] for place in report["memory"]] == ["rollout", "score", "update"]
    for place in report["memory"]:
        assert place["total_bytes"] == sum(term["bytes"] for term in place["terms"])
    assert os.listdir(tmp_path) == ["doctor.json"]  # no run folder
    out = capsys.readouterr().out
    assert "this run would work: no problems, no warnings" in out
    assert "\x1b[" not in out  # plain, where there is no terminal


@pytest.mark.process
@pytest.mark.parametrize("loss", ["policy_gradient", "reverse_kl"])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_students_own_teacher_takes_a_runs_path(
    noisy: bool,
    loss: str,
    doctor: Examined,
    smoke_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dropout that a model was published with: none in an update, and found where an update had it."""
    student = tmp_path / "student"
    shutil.copytree(smoke_models["student"], student)
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))
    if noisy:
        stage = import_module("iwopd.training.update")  # the package shows the function of that name
        monkeypatch.setattr(stage, "evaluation_mode", lambda model: nullcontext(model.train()))
    status, report = doctor(f"student.path={student}", f"loss={loss}")
    (said,) = [text for text in texts(report, "problem" if noisy else "ok", "Live check") if "own teacher" in text]
    assert "gradient norm" in said
    assert ("where A should be 0" in said) == noisy
    assert status == noisy


@pytest.mark.vllm
def test_a_vllm_engine_is_started_and_compared(doctor: Examined) -> None:
    status, report = doctor("rollout=vllm")
    assert status == 0, texts(report, "problem")
    (said,) = [text for text in texts(report, "ok", "Live check") if "agree" in text]
    assert "own weights" not in said
    assert any(term["what"].startswith("student's vLLM engine") for term in report["memory"][0]["terms"])


@pytest.mark.process
def test_the_window_of_the_weighting_counts(doctor: Examined) -> None:
    _, whole = doctor("weighting=uniform", "doctor.live=false")
    _, first = doctor("weighting=first30", "doctor.live=false")
    stages = [{cost["stage"]: cost["tokens"] for cost in report["costs"]["stages"]} for report in (whole, first)]
    prompt = 8 * (stages[0]["update"] / 8 - 24)
    assert stages[1]["update"] == stages[1]["score"] == prompt + 8 * 8  # ceil(0.3 · 24)
    assert stages[1]["rollout"] == stages[0]["rollout"] == 8 * 24
    kept = [{term["what"]: term["bytes"] for term in report["memory"][2]["terms"]} for report in (whole, first)]
    assert kept[1]["activations"] < kept[0]["activations"]


@pytest.mark.process
def test_what_is_left_out_says_why(doctor: Examined) -> None:
    _, report = doctor("doctor.live_gib=1e-6")
    assert "more than doctor.live_gib=1e-06" in texts(report, "note", "Live check")[0]


# ---------------------------------------------------------------------------------------------- planning

AIME = (
    "student=hf",
    f"student.path={MODELS / 'Qwen3-0.6B'}",
    "teacher=hf",
    f"teacher.path={MODELS / 'Qwen3-30B-A3B-Instruct-2507'}",
    "teacher.offload=true",
    "student.gradient_checkpointing=true",
    "optim.autocast=true",
    "optim.micro_batch_tokens=10240",
    "rollout=vllm",
    "rollout.max_tokens=8192",
    "rollout.engine.gpu_memory=0.5",
    "data.max_prompt_tokens=2048",
)
# The toy's teacher attends to 4,096 tokens.
STUDENT = (*(override for override in AIME if "teacher" not in override), "rollout.max_tokens=2048")


@pytest.mark.process
def test_hours_on_a_cpu_are_of_its_own_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the preset took 95 s on two cores: rollout 25, scoring 17, update 45. What these cores reach, in the
    place of what the machine of this test does."""
    monkeypatch.setattr("iwopd.doctor.cpu.measured", lambda: Card(0.0, 1.0, 12.0, "CPU", 0.4))
    pair = (f"student.path={MODELS / 'Qwen2.5-0.5B-Instruct'}", f"teacher.path={MODELS / 'Qwen2.5-1.5B-Instruct'}")
    problems = ("data=file", f"data.path={PROBLEMS}", "data.prompt_column=problem", "data.max_prompt_tokens=100")
    plan = ("benchmark=[]", "doctor.live=false", f"doctor.json={tmp_path / 'doctor.json'}")
    iwopd("doctor", "+experiment=gsm8k_cpu", *pair, *problems, *plan)
    report = json.loads((tmp_path / "doctor.json").read_text())
    seconds = {stage["stage"]: stage["seconds"] for stage in report["costs"]["stages"]}
    for stage, took in {"rollout": 25, "score": 17, "update": 45}.items():
        assert took / 1.5 < seconds[stage] < took * 1.5, stage
    assert report["costs"]["hours"] == pytest.approx(100 * sum(seconds.values()) / 3600)
    said = texts(report, "note", "Tokens, FLOPs and hours")[-1]
    assert "hours on this machine's CPU, just measured at 0.4 TFLOP/s in float32, 1 in bfloat16 and 12 GB/s" in said


@pytest.mark.process
def test_a_plan_from_config_json_alone(doctor: Examined) -> None:
    problems = (
        "data=file",
        f"data.path={PROBLEMS}",
        "data.prompt_column=problem",
        "benchmark=[smoke,file]",
        f"eval.benchmarks.file.path={PROBLEMS}",
        "eval.benchmarks.file.prompt_column=problem",
    )
    status, report = doctor(*AIME, *problems, "doctor.card=h200")
    assert status == 0, texts(report, "problem")
    assert len([text for text in texts(report, "warning", "Models") if "config.json alone" in text]) == 2
    assert report["costs"]["hours"] > 0
    terms = {place["stage"]: {term["what"]: term["bytes"] for term in place["terms"]} for place in report["memory"]}
    assert terms["update"]["student's weights"] == 4 * 596_049_920
    assert terms["update"]["Adam's moments"] == 8 * 596_049_920
    assert "teacher's weights" not in terms["update"]  # offloaded
    assert terms["score"]["teacher's weights"] == 2 * 30_532_122_624
    assert terms["all stages"]["teacher's weights"] == 2 * 30_532_122_624
    assert terms["rollout"]["student's vLLM engine"] == pytest.approx(0.5 * 139.8 * 2**30)


@pytest.mark.process
def test_a_card_that_is_too_small(doctor: Examined, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = doctor(*STUDENT, "doctor.card=l4", "student.gradient_checkpointing=false")
    assert (status, report["works"]) == (1, False)
    (said,) = texts(report, "problem", "Memory")
    assert said.startswith("update: ")
    assert "does not fit" in said
    assert "student.gradient_checkpointing=true" in said
    assert "this run would not work: 1 problem" in capsys.readouterr().out


@pytest.mark.process
def test_lora_has_few_gradients_and_small_checkpoints(doctor: Examined) -> None:
    _, report = doctor(*STUDENT, "doctor.card=h100", "student.lora.rank=8")
    terms = {term["what"]: term["bytes"] for term in report["memory"][2]["terms"]}
    # A pair of matrices beside each of a layer's seven, float32: rank · (rows + columns).
    assert terms["adapters' weights"] == 4 * 28 * 8 * (3072 + 2 * 2048 + 3072 + 3 * 4096)
    assert terms["Adam's moments"] == 2 * terms["adapters' weights"]


@pytest.mark.process
def test_more_gpus_than_there_are(doctor: Examined) -> None:
    status, report = doctor(*STUDENT, "doctor.card=h100", "doctor.gpus=2", "rollout.engine.tensor_parallel=4")
    assert status == 1
    assert "tensor_parallel=4: there are 2" in texts(report, "problem", "Where")[0]


@pytest.mark.process
def test_an_engine_without_room_for_one_sequence(doctor: Examined) -> None:
    status, report = doctor(*STUDENT, "doctor.card=l4", "rollout.engine.gpu_memory=0.06")
    assert status == 1
    # 2,048 + 2,048 tokens × 28 layers × 2 × 8 · 128 numbers × 2 bytes; 0.06 of the card less the weights.
    (said,) = [text for text in texts(report, "problem", "Memory") if text.startswith("rollout.engine: ")]
    assert "215 MiB are left" in said
    assert "one sequence of 4,096 tokens takes 448 MiB" in said


# ---------------------------------------------------------------------------------------------- what does not work


@pytest.mark.process
def test_vocabularies_that_differ_are_shown(doctor: Examined, smoke_models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(smoke_models["teacher"], folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    status, report = doctor("teacher=hf", f"teacher.path={folder}", "doctor.live=false")
    assert status == 1
    assert "2 tokens" in texts(report, "problem", "Tokenizers")[0]
    examples = [text for text in texts(report, "note", "Tokenizers") if text.startswith("'a'")]
    assert examples == [f"'a': id {vocabulary['b']} in the student, {vocabulary['a']} in the teacher"]
    assert "Disk" in titles(report)


@pytest.mark.process
def test_another_chat_template_is_a_warning(doctor: Examined, smoke_models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(smoke_models["teacher"], folder)
    (folder / "chat_template.jinja").write_text("Q: {{ messages[0]['content'] }} A:")
    status, report = doctor("teacher=hf", f"teacher.path={folder}", "doctor.live=false")
    assert status == 0
    assert any("Q: What is 6 times 7? A:" in text for text in texts(report, "warning", "Tokenizers"))


def test_every_other_check_continues(doctor: Examined, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    wrong = ("teacher=hf", "teacher.path=Qwen/Qwen3-4B", "data=file", f"data.path={tmp_path / 'none.jsonl'}")
    status, report = doctor(*wrong, "eval.max_tokens=100000")
    assert status == 1
    found = texts(report, "problem")
    assert any(text.startswith("teacher.path=Qwen/Qwen3-4B: ") for text in found)
    assert any("there is no such file" in text for text in found)
    assert any(text.startswith("eval.max_tokens=100000: ") for text in found)
    assert "not estimated" in texts(report, "warning", "Memory")[0]
    assert texts(report, "note", "Live check")


@pytest.mark.process
def test_a_student_that_does_not_load(doctor: Examined, smoke_models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "student"
    shutil.copytree(smoke_models["student"], folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    status, report = doctor("student=hf", f"student.path={folder}")
    assert status == 1
    assert "1 weights are missing" in texts(report, "problem", "Live check")[0]


# ---------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "doctor", "doctor.card=h1000")
    assert line.startswith("iwopd: doctor.card=h1000: not a choice; did you mean h100? choose one of b200, h200, h100,")
    assert "doctor.utilisation=2" in refused(capsys, "doctor", "doctor.utilisation=2.0")
    assert "there is no folder" in refused(capsys, "doctor", f"doctor.json={tmp_path / 'none' / 'doctor.json'}")
    assert "did you mean doctor.card?" in refused(capsys, "doctor", "+doctor.cart=h100")


@pytest.mark.process
def test_the_verb_is_listed() -> None:
    found = process("--help")
    assert "doctor" in found.stdout
