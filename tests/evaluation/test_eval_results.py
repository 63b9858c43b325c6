"""`iwopd eval`: its files, going on after being cut off, and public problems."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from support.paths import PROBLEMS, WORD_PROBLEMS
from support.records import plain_rollout
from support.running import SMALL, iwopd, refused, rows, start

from iwopd.errors import RunFolderError
from iwopd.evaluation.evaluate import Graded, Outcome, details, measure
from iwopd.evaluation.grading import Verdict
from iwopd.evaluation.results import SampleFile, read_samples
from iwopd.preflight.digests import model_digest
from iwopd.report.stats import mean_interval
from iwopd.types import Prompt

pytestmark = pytest.mark.process

EVAL = (*SMALL, "eval.benchmarks.smoke.limit=24", "eval.model=toy://smoke/student", "eval.k=3", "eval.chunk=12")


def results(folder: Path, name: str = "smoke") -> dict:
    return json.loads((folder / "eval" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that nobody interrupted: 24 problems × 3 samples, in 6 chunks."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert iwopd("eval", *EVAL, f"run.dir={folder}") == 0
    return folder


def test_every_sample_is_kept_and_the_figures_are_those_of_the_samples(whole: Path) -> None:
    found, samples = results(whole), read_samples(whole / "eval" / "smoke.jsonl.zst")
    drawn = [row for row in samples if not row["greedy"]]
    assert len(drawn) == 24 * 3
    assert len(samples) == 24 * 4
    assert found["metrics"]["accuracy"] == pytest.approx(sum(row["correct"] for row in drawn) / 72)
    assert found["metrics"]["response_length"] == pytest.approx(sum(row["tokens"] for row in drawn) / 72)
    assert found["settings"]["sampling"]["n"] == 3
    assert found["settings"]["model"] == "toy://smoke/student"
    assert [row["id"] for row in found["problems"]] == [f"test-{number}" for number in range(1, 25)]
    for row in found["problems"]:
        mine = [sample for sample in drawn if sample["prompt_id"] == row["id"]]
        assert row["right"] == sum(sample["correct"] for sample in mine)
        assert row["share"] == row["right"] / 3
    assert found["pass_at_k"].keys() == found["mean_at_k"].keys() == {"1", "2", "3"}
    assert found["pass_at_k"]["1"]["value"] == pytest.approx(found["metrics"]["accuracy"])
    (logged,) = rows(whole / "metrics.jsonl")
    assert logged["eval/pass_at_k"] == found["metrics"]["pass_at_k"] == found["pass_at_k"]["3"]["value"]
    for row in samples:
        right = row["response"].rpartition("#")[2] == row["reference"] and "#" in row["response"]
        assert row["correct"] is right


def test_how_many_are_sampled_at_one_time_does_not_matter(whole: Path, tmp_path: Path) -> None:
    assert iwopd("eval", *EVAL, "eval.chunk=1000", f"run.dir={tmp_path / 'one'}") == 0
    assert results(tmp_path / "one")["metrics"] == results(whole)["metrics"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_cut_off_it_continues_to_the_same_figures(whole: Path, tmp_path: Path, how: signal.Signals) -> None:
    folder = tmp_path / "cut"
    running = start("eval", *EVAL, f"run.dir={folder}")
    samples = folder / "eval" / "smoke.jsonl.zst"
    limit = time.monotonic() + 120
    while not samples.exists() and running.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    running.send_signal(how)
    out, err = running.communicate()
    assert running.returncode == (130 if how == signal.SIGINT else -how), (out, err)
    assert not (folder / "eval" / "smoke.json").exists()
    kept = read_samples(samples)
    assert 0 < len(kept) < 24 * 4
    assert kept == read_samples(whole / "eval" / "smoke.jsonl.zst")[: len(kept)]
    if how == signal.SIGINT:
        assert "run.resume=true" in out
    before = samples.read_bytes()
    assert iwopd("eval", *EVAL, f"run.dir={folder}", "run.resume=true") == 0
    assert samples.read_bytes().startswith(before[: len(before) // 2])
    assert read_samples(samples) == read_samples(whole / "eval" / "smoke.jsonl.zst")
    assert results(folder) == results(whole)


@pytest.mark.parametrize("cut", [1, 20, 400])
def test_a_damaged_tail_is_cut_off_and_sampled_again(whole: Path, tmp_path: Path, cut: int) -> None:
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "eval" / "smoke.jsonl.zst"
    file.write_bytes(file.read_bytes()[:-cut])
    lost = len(read_samples(whole / "eval" / "smoke.jsonl.zst")) - len(read_samples(file))
    assert lost > 0
    assert iwopd("eval", *EVAL, f"run.dir={tmp_path / 'run'}", "run.resume=true") == 0
    assert file.read_bytes() == (whole / "eval" / "smoke.jsonl.zst").read_bytes()
    assert results(tmp_path / "run") == results(whole)


@pytest.mark.parametrize("place", ["first", "middle", "magic number", "last"])
def test_a_flipped_bit_costs_its_own_frame(whole: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "eval" / "smoke.jsonl.zst"
    content, samples = bytearray(file.read_bytes()), read_samples(file)
    starts = [found.start() for found in re.finditer(re.escape(zstandard.FRAME_HEADER), bytes(content))]
    assert len(starts) >= 3, "several frames"
    flipped = {"first": 40, "middle": starts[1] + 40, "magic number": starts[1] + 1, "last": len(content) - 9}[place]
    content[flipped] ^= 4
    file.write_bytes(content)
    kept = read_samples(file)
    lost = [row for row in samples if row not in kept]
    assert 0 < len(lost) == len(samples) - len(kept)
    assert len(lost) <= 2 * len(samples) / len(starts)
    assert iwopd("eval", *EVAL, f"run.dir={tmp_path / 'run'}", "run.resume=true") == 0
    by_name = lambda row: (row["prompt_id"], row["sample"], row["greedy"])  # noqa: E731
    assert sorted(read_samples(file), key=by_name) == sorted(samples, key=by_name)
    assert results(tmp_path / "run") == results(whole)


def test_a_finished_evaluation_that_is_resumed_draws_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr("iwopd.rollout.hf.HfEngine.generate", None)
    assert iwopd("eval", *EVAL, f"run.dir={tmp_path / 'run'}", "run.resume=true") == 0
    assert "72 of 72 samples are there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("eval.model=toy://smoke/teacher", "eval.model"),
        ("eval.temperature=0.5", "eval.temperature"),
        ("seed=1", "seed"),
        ("eval.n=4", "eval.n"),
        ("eval.chunk=6", "eval.chunk"),
    ],
)
def test_other_settings_are_refused_when_going_on(
    whole: Path, setting: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "eval", *EVAL, setting, f"run.dir={whole}", "run.resume=true")
    assert f"differing: {key} (there" in line


def test_another_model_under_the_same_name_is_refused(
    smoke_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, settings = tmp_path / "model", (*EVAL, f"run.dir={tmp_path / 'run'}", f"eval.model={tmp_path / 'model'}")
    shutil.copytree(smoke_models["student"], model)
    assert iwopd("eval", *settings) == 0
    before = model_digest(str(model))
    shutil.copy(smoke_models["teacher"] / "model.safetensors", model)
    assert model_digest(str(model)) != before
    line = refused(capsys, "eval", *settings, "run.resume=true")
    assert f"this run began with other inputs: eval.model={model}: has another model.safetensors" in line
    (tmp_path / "run" / "inputs.json").unlink()
    line = refused(capsys, "eval", *settings, "run.resume=true")
    assert "its samples are of another evaluation (weights differ)" in line


def graded(prompt: str, sample: int, correct: bool, tokens: int = 1) -> Graded:
    answer = plain_rollout([1], [1] * tokens, prompt_id=prompt, sample=sample)
    return Graded(Prompt(prompt, [1], "", answer="1"), answer, "text", Verdict(correct, "1"))


@pytest.mark.unit
def test_a_full_disk_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SampleFile(tmp_path / "eval" / "b.jsonl.zst", {"weights": ""}, samples=1, greedy=False)
    file.add([graded("a", 0, True)], [])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        file.add([graded("b", 0, True)], [])
    monkeypatch.undo()
    again = SampleFile(tmp_path / "eval" / "b.jsonl.zst", {"weights": ""}, samples=1, greedy=False)
    found = again.find([Prompt("a", [1], "")])
    assert found is not None
    assert found[0].correct
    with pytest.raises(RunFolderError, match="weights differ"):
        SampleFile(tmp_path / "eval" / "b.jsonl.zst", {"weights": "x"}, samples=1, greedy=False)


def outcomes(verdicts: Sequence[Sequence[int]], lengths: Sequence[Sequence[int]]) -> list[Outcome]:
    return [
        Outcome(str(place), sample, False, length, length == 9, bool(verdict), False)
        for place, (row, sizes) in enumerate(zip(verdicts, lengths, strict=True))
        for sample, (verdict, length) in enumerate(zip(row, sizes, strict=True))
    ]


@pytest.mark.unit
def test_figures_by_hand() -> None:
    found = outcomes([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1]], [[1, 2, 3, 4, 5], [6, 7, 8, 9, 9]])
    told, metrics = details(found), measure(found, k=2)
    assert told["pass_at_k"].keys() == {"1", "2", "4", "5"}
    # 1 − C(wrong, k) / C(5, k): of 2 right ones 1 − 3/10, of one 1 − 6/10.
    assert told["pass_at_k"]["2"]["value"] == pytest.approx((0.7 + 0.4) / 2)
    assert told["pass_at_k"]["4"]["value"] == pytest.approx((1 + 0.8) / 2)
    assert told["pass_at_k"]["5"]["value"] == 1
    assert told["mean_at_k"]["2"]["value"] == pytest.approx((0.5 + 0) / 2)
    assert told["mean_at_k"]["5"]["value"] == pytest.approx((0.4 + 0.2) / 2) == metrics["accuracy"]
    assert (told["mean_at_k"]["5"]["low"], told["mean_at_k"]["5"]["high"]) == mean_interval([0.4, 0.2])[1:]
    assert (metrics["response_length"], metrics["response_length_median"]) == (5.4, 5.5)
    assert (metrics["response_length_p90"], metrics["response_length_max"]) == (9, 9)
    assert metrics["truncated"] == 0.2
    assert told["problems"][0] == {
        "id": "0",
        "right": 2,
        "samples": 5,
        "share": 0.4,
        "response_length": 3.0,
        "truncated": 0,
        "grading_timeouts": 0,
    }


# ---------------------------------------------------------------------------------------------- other problems


@pytest.fixture(scope="session")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads bytes, for texts of any kind."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from iwopd.toy.tokenizer import make_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("parrot"), make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


QUICK = ("eval.k=2", "eval.greedy=false", "rollout.max_tokens=8")


def test_a_problem_in_mathematics_from_a_file(parrot: Path, tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text('{"prompt": "1/2 + 1/2?", "answer": "1"}\n{"prompt": "Half?", "answer": "\\\\frac{1}{2}"}\n')
    settings = ("benchmark=[math_file]", f"eval.benchmarks.math_file.path={file}")
    folder = tmp_path / "run"
    assert iwopd("eval", *settings, *QUICK, f"eval.model={parrot}", f"run.dir={folder}") == 0
    assert results(folder, "math_file")["metrics"]["accuracy"] == 0
    assert results(folder, "math_file")["settings"]["suffix"].startswith("\n")
    assert len(read_samples(folder / "eval" / "math_file.jsonl.zst")) == 4


def test_programs_are_run_where_that_is_allowed(parrot: Path, tmp_path: Path) -> None:
    row = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": "assert f() == 1"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    settings = ("benchmark=[humaneval_plus]", f"eval.benchmarks.humaneval_plus.path={tmp_path / 'p.jsonl'}")
    more = ("eval.allow_code_execution=true", f"eval.model={parrot}", f"run.dir={tmp_path / 'run'}")
    assert iwopd("eval", *settings, *QUICK, *more) == 0
    found = results(tmp_path / "run", "humaneval_plus")
    assert found["metrics"]["accuracy"] == 0
    assert found["settings"]["sandbox"] == "namespaces"


def test_problems_of_the_public_forms(parrot: Path, tmp_path: Path) -> None:
    files = {"aime24": PROBLEMS, "aime25": PROBLEMS, "gsm8k": WORD_PROBLEMS}
    paths = [f"eval.benchmarks.{name}.path={file}" for name, file in files.items()]
    settings = ("benchmark=[aime24,aime25,gsm8k]", *paths, "eval.benchmarks.gsm8k.limit=6", *QUICK)
    assert iwopd("eval", *settings, f"eval.model={parrot}", f"run.dir={tmp_path / 'run'}") == 0
    found = {name: results(tmp_path / "run", name) for name in files}
    assert [found[name]["metrics"]["problems"] for name in files] == [12, 12, 6]
    samples = read_samples(tmp_path / "run" / "eval" / "gsm8k.jsonl.zst")
    assert samples[0]["reference"] == "37"
    assert all(row["reference"].replace(",", "").lstrip("-").replace(".", "").isdigit() for row in samples)
    (logged,) = rows(tmp_path / "run" / "metrics.jsonl")
    assert logged["eval/accuracy"] == 0
    assert "eval/aime25/pass_at_k_high" in logged


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["benchmark=[aime23]"], ["benchmark=aime23: no such preset", "aime24", "gsm8k", "mbpp_plus"]),
        (["benchmark=[humaneval_plus]"], ["grader=code", "eval.allow_code_execution=true"]),
        (["eval.benchmarks.aime24.path=x"], ["no benchmark of that name is chosen; add benchmark=[aime24]"]),
        (["eval.k=4", "eval.n=2"], ["eval.k=4: larger than eval.n=2"]),
        (["eval.benchmarks.smoke.grader=maths"], ["grader=maths: not a choice; did you mean math?"]),
        (["eval.benchmarks.smoke.grader=math"], ["answer_pattern", "grader=math finds the answer itself"]),
        (["eval.benchmarks.smoke.reference_pattern='('"], ["reference_pattern=(: not a regular expression"]),
        (["eval.benchmarks.smoke.reference_pattern=x"], ["row 1, column answer: reference_pattern=x matches nothing"]),
        (["eval.benchmarks.smoke.answer_column=solution"], ["no such column; it has id, prompt, answer"]),
        (["eval.grading_timeout_s=0"], ["eval.grading_timeout_s=0.0: must be above 0"]),
    ],
)
def test_bad_input(settings: list[str], says: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = () if settings[0].startswith("benchmark=") else SMALL
    line = refused(capsys, "eval", *small, "eval.model=toy://smoke/student", *settings, f"run.dir={tmp_path / 'run'}")
    for part in says:
        assert part in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "settings", "says"),
    [
        ('{"prompt": "a", "answer": " "}', ["eval.benchmarks.file.grader=math"], "row 1, column answer: empty"),
        ('{"prompt": "a"}', [], "file.answer_column=answer"),
        (
            '{"prompt": "a", "answer": "1"}',
            ["eval.benchmarks.file.grader=code", "eval.allow_code_execution=true"],
            "has neither a column test nor",
        ),
    ],
)
def test_bad_problems(
    content: str, settings: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(content + "\n")
    source = ("benchmark=[file]", f"eval.benchmarks.file.path={file}", "eval.model=toy://smoke/student")
    assert says in refused(capsys, "eval", *source, *settings, f"run.dir={tmp_path / 'run'}")


@pytest.mark.parametrize(("grader", "package"), [("math", "math_verify"), ("code", "evalplus")])
def test_a_grader_that_is_not_installed(
    grader: str, package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iwopd.preflight.graders.find_spec", lambda name: None if name == package else name)
    settings = ("eval.benchmarks.smoke.answer_pattern=null", f"eval.benchmarks.smoke.grader={grader}")
    line = refused(
        capsys,
        *("eval", *SMALL, "eval.model=toy://smoke/student", *settings),
        *("eval.allow_code_execution=true", f"run.dir={tmp_path / 'run'}"),
    )
    assert "is not installed; pip install" in line


def test_references_that_cannot_be_compared_are_reported(
    parrot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": "\\\\frac{"}\n')
    settings = ("benchmark=[file]", f"eval.benchmarks.file.path={file}", "eval.benchmarks.file.grader=math")
    assert iwopd("eval", *settings, *QUICK, f"eval.model={parrot}", f"run.dir={tmp_path / 'run'}") == 0
    assert "warning: file: 1 of 2 references are no mathematics" in capsys.readouterr().out
