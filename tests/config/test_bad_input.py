"""What users get wrong in files: one line, status 2, nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.running import SMALL, iwopd, refused

from iwopd.data import PromptStream
from iwopd.types import Prompt

pytestmark = pytest.mark.cli

Edit = Callable[[Path], None]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def refused_files(capsys: pytest.CaptureFixture[str], run_folder: Path, *overrides: str) -> str:
    """The one line; and the run folder was not made."""
    line = refused(capsys, "train", *SMALL, f"run.dir={run_folder}", *overrides)
    assert not run_folder.exists()
    return line


# ---------------------------------------------------------------------------------------------- models


@pytest.fixture
def model(smoke_models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the student to be damaged."""
    folder = tmp_path / "model"
    shutil.copytree(smoke_models["student"], folder)
    return folder


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def cut_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(name: str, change: Callable[[dict], None]) -> Edit:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def swap_tokens(tokenizer: dict) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


DAMAGED: dict[str, tuple[Edit, str, list[str]]] = {
    "weights cut short": (cut_weights, "student.path", ["model.safetensors", "cut short"]),
    "header cut short": (cut_header, "student.path", ["model.safetensors", "cut short"]),
    "a weight missing": (drop_weight, "student.path", ["1 weights are missing", "up_proj"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "student.path", ["no weights"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), "student.path", ["no config.json"]),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "student.path", ["not JSON"]),
    "unknown architecture": (
        edit_json("config.json", lambda config: config.update(model_type="qwen99")),
        "student.path",
        ["qwen99"],
    ),
    "no EOS": (
        edit_json("tokenizer_config.json", lambda config: config.pop("eos_token")),
        "student.path",
        ["no end-of-sequence token"],
    ),
    "other tokens": (
        edit_json("tokenizer.json", swap_tokens),
        "teacher.path",
        ["2 tokens", "'a'", "student", "teacher"],
    ),
    "other EOS": (
        edit_json("tokenizer_config.json", lambda config: config.update(eos_token="<|pad|>")),
        "teacher.path",
        ["eos_token_id"],
    ),
}


@pytest.mark.parametrize(("edit", "key", "says"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_model_is_refused(
    edit: Edit, key: str, says: list[str], model: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(model)
    line = refused_files(capsys, run_folder, f"{key}={model}")
    assert key in line
    for part in says:
        assert part in line


def test_a_model_with_fewer_rows_than_tokens(model: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    small = AutoModelForCausalLM.from_pretrained(model)
    small.resize_token_embeddings(258)
    small.save_pretrained(model)
    line = refused_files(capsys, run_folder, f"teacher.path={model}")
    assert "258 rows for a tokenizer of 260 tokens" in line


@pytest.mark.process
def test_a_generation_config_that_could_not_be_saved_is_fixed(model: Path, run_folder: Path) -> None:
    from support.running import iwopd

    edit_json("generation_config.json", lambda config: config.update(do_sample=False, temperature=0.5))(model)
    assert iwopd("train", *SMALL, f"run.dir={run_folder}", f"student.path={model}", "run.steps=1", "eval.every=0") == 0
    assert json.loads((run_folder / "final" / "generation_config.json").read_text())["do_sample"] is True


def test_a_path_without_a_model_is_refused(
    tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert "does not exist" in refused_files(capsys, run_folder, f"student.path={tmp_path / 'none'}")
    assert "is a file" in refused_files(capsys, run_folder, f"teacher.path={tmp_path / 'file'}")
    assert "no config.json" in refused_files(capsys, run_folder, f"teacher.path={tmp_path}")
    assert "did you mean toy://smoke/student?" in refused_files(capsys, run_folder, "student.path=toy://smoke/studnt")


def test_a_hub_name_without_a_network_is_one_quick_line(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for key in ("student.path", "data.path"):
        line = refused_files(capsys, run_folder, f"{key}=nobody/nothing")
        assert f"{key}=nobody/nothing" in line
        assert "offline" in line


def test_nan_weights_stop_the_run_and_name_step_and_rollout(
    model: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    for key in ("student.path", "teacher.path"):
        shutil.rmtree(run_folder, ignore_errors=True)
        settings = (*SMALL, f"run.dir={run_folder}", f"{key}={model}", "run.samples=0")
        line = refused(capsys, "train", *settings)
        assert "NaN" in line
        assert "train-1#0" in line or "step 1: " in line


def test_a_divergence_stops_before_the_step_and_keeps_the_checkpoint(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*SMALL, f"run.dir={run_folder}", "optim.lr=1e30", "optim.warmup_steps=0", "run.save_every=1")
    line = refused(capsys, "train", *settings)
    assert "step 2: " in line
    assert "step-000001 stays" in line
    assert (run_folder / "checkpoints" / "step-000001" / "manifest.json").exists()


# ---------------------------------------------------------------------------------------------- data


FILES: dict[str, tuple[str, str | bytes, list[str]]] = {
    "empty": ("a.jsonl", "", ["no rows"]),
    "blank lines only": ("a.jsonl", "\n\n", ["no rows"]),
    "malformed": ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', ["a.jsonl: line 2, column 15"]),
    "not an object": ("a.jsonl", '{"prompt": "a"}\n[1]\n', ["a.jsonl: line 2: a list, not an object"]),
    "not UTF-8": ("a.jsonl", b"\xff\xfe", ["a.jsonl: line 1: not UTF-8"]),
    "other columns": ("a.jsonl", '{"question": "a", "answer": "1"}\n', ["=prompt", "it has question, answer"]),
    "null prompt": ("a.jsonl", '{"prompt": "a"}\n{"prompt": null}\n', ["row 2, column prompt: null"]),
    "missing later": ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', ["row 2, column prompt: missing"]),
    "empty prompt": ("a.jsonl", '{"prompt": " "}\n', ["row 1, column prompt: empty"]),
    "number prompt": ("a.jsonl", '{"prompt": 3}\n', ["row 1, column prompt: neither a text nor a list of messages"]),
    "half a character": ("a.jsonl", '{"prompt": "\\ud800"}\n', ["row 1, column prompt: not valid Unicode"]),
    "endless number": ("a.jsonl", '{"prompt": "a", "n": ' + "1" * 5000 + "}\n", ["a.jsonl: line 1"]),
    "bad messages": ("a.jsonl", '{"prompt": [{"role": "user"}]}\n', ["row 1, column prompt: neither"]),
    "csv without rows": ("a.csv", "prompt,answer\n", ["a.csv"]),
    "broken parquet": ("a.parquet", b"PAR1 not really", ["a.parquet", "cannot be read"]),
    "another format": ("a.txt", "a", ["use .jsonl, .json, .csv or .parquet"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), FILES.values(), ids=FILES.keys())
def test_a_bad_data_file_is_refused(
    name: str,
    content: str | bytes,
    says: list[str],
    tmp_path: Path,
    run_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused_files(capsys, run_folder, f"data.path={file}", "data.batch_size=1")
    for part in says:
        assert part in line


def write_prompts(file: Path, *lengths: int) -> str:
    file.write_text("".join(json.dumps({"prompt": "a" * length, "answer": "1"}) + "\n" for length in lengths))
    return f"data.path={file}"


@pytest.mark.process
def test_overlong_prompts_are_an_error_or_dropped_and_counted(
    tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_prompts(tmp_path / "a.jsonl", 5, 50, 5)
    line = refused_files(capsys, run_folder, data, "data.batch_size=2", "data.max_prompt_tokens=20")
    assert "1 of 3 prompts are longer, prompt train-2 has 52 tokens" in line
    assert "all 3 prompts are longer" in refused_files(
        capsys, run_folder, data, "data.batch_size=2", "data.max_prompt_tokens=2", "data.overlong=drop"
    )
    from support.running import iwopd, rows

    settings = (data, "data.batch_size=2", "data.max_prompt_tokens=20", "data.overlong=drop", "run.steps=1")
    assert iwopd("train", *SMALL, f"run.dir={run_folder}", *settings) == 0
    assert "dropped 1 prompts" in capsys.readouterr().out
    first = next(row for row in rows(run_folder / "metrics.jsonl") if "train/loss" in row)
    assert first["data/dropped"] == 1


def test_fewer_prompts_than_a_batch(tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused_files(capsys, run_folder, write_prompts(tmp_path / "a.jsonl", 5, 5), "data.batch_size=3")
    assert "data.batch_size=3: the data has 2 prompts" in line


def test_two_rows_of_one_id(tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "n": 1}\n{"prompt": "b", "n": 1}\n')
    data = (f"data.path={tmp_path / 'a.jsonl'}", "data.id_column=n", "data.batch_size=1")
    assert "row 2, column n: duplicate id 1, as in row 1" in refused_files(capsys, run_folder, *data)


def test_a_benchmark_without_answers(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused_files(capsys, run_folder, "eval.benchmarks.smoke.answer_column=solution")
    assert "no such column; it has id, prompt, answer" in line
    assert "regular expression" in refused_files(capsys, run_folder, "eval.benchmarks.smoke.answer_pattern='('")


def test_more_tokens_than_the_model_can_attend_to(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "set it to 40" in refused_files(capsys, run_folder, "rollout.max_tokens=100000")


# ---------------------------------------------------------------------------------------------- folders and schemes


def test_names_too_long_for_a_file(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "/" + "x" * 300
    for key in ("student.path", "teacher.path", "data.path"):
        assert "too long" in refused_files(capsys, run_folder, f"{key}={long}")
    assert "too long" in refused(capsys, "train", *SMALL, f"run.dir={long}")


def test_a_folder_whose_config_is_no_yaml(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder.mkdir()
    (run_folder / "config.yaml").write_text("a: [")
    assert "config.yaml cannot be read" in refused(capsys, "train", *SMALL, f"run.dir={run_folder}")


def test_a_run_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    for folder, says in (("file/run", "cannot be written"), ("full", "holds files but no run")):
        assert says in refused(capsys, "train", *SMALL, f"run.dir={tmp_path / folder}")
    assert (tmp_path / "full" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("", "cannot be imported"),
        ("f = 3", "is not a function"),
        ("def f(given): return 1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(5)", "cannot be imported"),
        ("def f(given):\n    raise SystemExit(5)", "SystemExit"),
        ("def f(given): return given.mask.sum()", "return weights [2, 3]"),
        ("def f(given): return given.advantages / 0", "NaN or infinite"),
    ],
)
def test_a_users_own_weighting_that_does_not_work(
    code: str,
    says: str,
    tmp_path: Path,
    run_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"scheme_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code + "\n")
    monkeypatch.chdir(tmp_path)
    assert says in refused_files(capsys, run_folder, "weighting=custom", f"weighting.path={name}:f")


# ---------------------------------------------------------------------------------------------- the order of prompts


@pytest.mark.unit
def test_every_prompt_comes_once_an_epoch_and_each_epoch_in_another_order() -> None:
    prompts = [Prompt(str(index), [1], "x") for index in range(10)]
    stream = PromptStream(prompts, batch_size=4, seed=1)
    epochs = [[prompt.id for step in (2 * epoch, 2 * epoch + 1) for prompt in stream.batch(step)] for epoch in (0, 1)]
    assert [len(set(epoch)) for epoch in epochs] == [8, 8]
    assert epochs[0] != epochs[1]
    assert [prompt.id for prompt in stream.batch(3)] == [prompt.id for prompt in PromptStream(prompts, 4, 1).batch(3)]


@pytest.mark.vllm
def test_a_folder_of_a_run_that_failed_while_it_started_is_free_again(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*SMALL, "run.steps=0", f"run.dir={run_folder}")
    line = refused(capsys, "train", *settings, "rollout=vllm", "+rollout.engine.args.nonsense=1")
    assert "rollout=vllm: vLLM does not start" in line
    assert (run_folder / "vllm.log").exists()
    assert iwopd("train", *settings) == 0
