"""final/ says what it is: the card's front matter, figures and examples are true, and it keeps secrets."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from support.composing import composed
from support.running import SMALL, iwopd, rows

from iwopd.machine import runtime
from iwopd.runs.card import MODEL, write_card
from iwopd.runs.manifest import verify
from iwopd.runs.public import hub_name, shown
from iwopd.vllm.quiet import as_found

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def run(smoke_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose models are local folders, with adapters."""
    folder = tmp_path_factory.mktemp("secret-place") / "run"
    settings = ("student=hf", f"student.path={smoke_models['student']}", "student.lora.rank=2", "run.name=tiny maths")
    assert iwopd("train", *SMALL, *settings, f"run.dir={folder}") == 0
    return folder


def card_of(run: Path) -> ModelCard:
    return ModelCard.load(run / "final" / "README.md")


def test_front_matter_is_what_the_hub_reads(run: Path) -> None:
    data = card_of(run).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["iwopd", "on-policy-distillation", "distillation"]
    assert data.base_model is None, "a local folder is no name on the hub"
    assert data.datasets is None
    [result] = data.eval_results
    last = [row for row in rows(run / "metrics.jsonl") if "eval/accuracy" in row][-1]
    assert (result.dataset_name, result.metric_name) == ("smoke", "mean@2")
    assert result.metric_value == pytest.approx(last["eval/accuracy"], abs=1e-4)


def test_the_table_holds_what_was_measured_before_and_after(run: Path) -> None:
    measured = [row for row in rows(run / "metrics.jsonl") if "eval/accuracy" in row]
    assert [measured[0]["step"], measured[-1]["step"]] == [0, 4]
    cells = [
        f"{row['eval/accuracy']:.3f} [{row['eval/accuracy_low']:.3f}, {row['eval/accuracy_high']:.3f}]"
        for row in (measured[0], measured[-1])
    ]
    text = card_of(run).text
    assert f"| smoke | 8 | mean@2 | {cells[0]} | {cells[1]} |" in text
    assert "after step 4 of 4" in text


def test_the_settings_are_said(run: Path) -> None:
    text = card_of(run).text
    tokens = sum(row.get("tokens/generated", 0) for row in rows(run / "metrics.jsonl"))
    for part in ("`iw`, gamma 0.5", "clip_low 0.2", "4, each of 8 prompts", f"{tokens:,.0f} tokens", "0.0002"):
        assert part in text
    assert "rank 2, alpha 16; merged into these weights" in text
    assert "arXiv" in text
    assert "2606.22600" in text
    assert "transformers 5" in text


def test_neither_local_paths_nor_the_machine_are_reported(run: Path, smoke_models: dict[str, Path]) -> None:
    text = (run / "final" / "README.md").read_text()
    assert f"student.path={smoke_models['student'].name}" in text
    for private in ("secret-place", str(smoke_models["student"].parent), str(Path.home()), "run.dir", "tracking"):
        assert private not in text


def test_the_card_is_part_of_the_manifest(run: Path) -> None:
    assert verify(run / "final") is None
    assert "README.md" in json.loads((run / "final" / "manifest.json").read_text())["files"]


def example(run: Path, number: int) -> str:
    """The card's Python, with this folder's path in it."""
    found = re.findall(r"```python\n(.*?)```", card_of(run).text, re.DOTALL)[number]
    assert f'"{MODEL}"' in found
    return found.replace(f'"{MODEL}"', repr(str(run / "final")))


def test_the_transformers_example_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example(run, 0), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")  # vLLM's own
def test_the_vllm_example_runs(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in runtime.VLLM.items():
        monkeypatch.setenv(name, value)
    from vllm import LLM

    monkeypatch.setattr("torch._dynamo.config.disable", True)  # as the program does on a CPU
    monkeypatch.setattr("vllm.LLM", partial(LLM, enforce_eager=True, kv_cache_memory_bytes=2**26))
    scope: dict[str, Any] = {}
    with as_found():
        exec(example(run, 1), scope)
        scope["model"].llm_engine.engine_core.shutdown()
    assert scope["output"].outputs[0].text in capsys.readouterr().out
    assert scope["output"].outputs[0].token_ids


# ---------------------------------------------------------------------------------------------- without a run


def written(folder: Path, *overrides: str, chat: bool = False, **about: Any) -> ModelCard:
    """A card of a run with this config that measured nothing."""
    given = {"command": ["iwopd train", *overrides], "python": "3", "versions": {}, "commit": None}
    (folder / "about.json").write_text(json.dumps({**given, "uncommitted_changes": False} | about))
    (folder / "metrics.jsonl").touch()
    write_card(folder, folder, composed(*overrides), steps=3, tokens=1000, chat=chat)
    return ModelCard.load(folder / "README.md")


HUB = (
    *("student=hf", "student.path=Qwen/Qwen3-0.6B", "teacher=hf", "teacher.path=Qwen/Qwen3-4B"),
    *("data=file", "data.path=zwhe99/DeepMath-103K", "rollout.max_tokens=99"),
)


@pytest.mark.unit
def test_hub_names_are_named(tmp_path: Path) -> None:
    card = written(tmp_path, *HUB)
    assert card.data.base_model == "Qwen/Qwen3-0.6B"
    assert card.data.base_model_relation == "finetune"
    assert card.data.datasets == ["zwhe99/DeepMath-103K"]
    assert card.data.eval_results is None
    assert "student.path=Qwen/Qwen3-0.6B" in card.text
    assert "Not evaluated." in card.text
    assert "tokenizer(prompt" in card.text
    assert "max_new_tokens=99" in card.text


@pytest.mark.unit
def test_secrets_of_a_config_are_not_shown(tmp_path: Path) -> None:
    servers = ("rollout=vllm_server", "rollout.urls=[http://10.1.2.3:8000]")
    wandb = ("tracking=wandb", "tracking.entity=my-team")
    text = written(tmp_path, *HUB, *servers, *wandb).text
    assert "10.1.2.3" not in text
    assert "my-team" not in text
    text = written(tmp_path, *HUB, "scoring=vllm", "+scoring.engine.args={hf_token: hf_abc}").text
    for private in ("hf_abc", "hf_token", "engine"):
        assert private not in text


@pytest.mark.unit
def test_several_benchmarks_are_rows(tmp_path: Path) -> None:
    names = ("smoke", "toy")
    metrics = {
        f"eval/{name}/{key}": value
        for name in names
        for key, value in {
            "accuracy": 0.5,
            "accuracy_low": 0.4,
            "accuracy_high": 0.6,
            "samples": 1,
            "k": 1,
            "problems": 7,
        }.items()
    }
    config = composed("benchmark=[smoke,toy]")
    about = {"command": ["iwopd train"], "python": "3", "versions": {}, "commit": None, "uncommitted_changes": False}
    (tmp_path / "about.json").write_text(json.dumps(about))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 5, **metrics}) + "\n")
    write_card(tmp_path, tmp_path, config, steps=5, tokens=10, chat=True)
    card = ModelCard.load(tmp_path / "README.md")
    for name in names:
        assert f"| {name} | 7 | mean@1 | – | 0.500 [0.400, 0.600] |" in card.text


@pytest.mark.unit
def test_what_a_path_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    assert hub_name("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
    assert hub_name("runs/x") is None
    assert hub_name("toy://smoke/student") is None
    for given, wanted in {
        "data.path=/home/me/problems.jsonl": "data.path=problems.jsonl",
        "data.path=~/me/problems.jsonl": "data.path=problems.jsonl",
        "a=[/x/y/z.csv,Qwen/Qwen3-4B]": "a=[z.csv,Qwen/Qwen3-4B]",
        "student.path=runs/x": "student.path=x",
        "student.path=toy://smoke/student": "student.path=toy://smoke/student",
        "urls=[https://a.b/c?key=1]": "urls=[http://…]",
        "data.suffix= /no_think and/or km/h": "data.suffix= /no_think and/or km/h",
    }.items():
        assert shown(given) == wanted
