"""The paper's experiments, every part of them but the size: problems, chat template, rollouts, scores, updates, graded
answers, with random models of a hundred thousand parameters that share a byte-level tokenizer."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import PROBLEMS, WORD_PROBLEMS
from support.running import iwopd, rows
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from iwopd.toy.tokenizer import make_tokenizer

pytestmark = pytest.mark.process  # mathematics is graded by processes

SUFFIX = "Please reason step by step, and put your final answer within \\boxed{}."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name a student and a larger teacher."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), make_tokenizer()
    for seed, (name, width) in enumerate({"student": 64, "teacher": 96}.items()):
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,  # vLLM's smallest on a CPU
            max_position_embeddings=4096,
            initializer_range=0.2,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return [f"{role}=hf" for role in ("student", "teacher")] + [
        f"{role}.path={folder / role}" for role in ("student", "teacher")
    ]


def train(experiment: str, run: Path, data: Path, benchmark: str, problems: Path, *overrides: str) -> list[dict]:
    """Three steps of an experiment on local problems; its metrics."""
    column = "question" if data == WORD_PROBLEMS else "problem"
    settings = [
        *(
            "parallel=single",
            "run.steps=3",
            "run.save_every=0",
            "run.samples=1",
            "tracking=none",
            "data=file",
            "data.batch_size=6",
        ),
        *(f"run.dir={run}", f"data.path={data}", f"data.prompt_column={column}", "rollout.max_tokens=48"),
        *(f"benchmark=[{benchmark}]", f"eval.benchmarks.{benchmark}.path={problems}"),
        *(f"eval.benchmarks.{benchmark}.limit=6", "eval.k=2", "eval.every=0"),
    ]
    assert iwopd("train", f"+experiment={experiment}", *settings, *overrides) == 0
    return rows(run / "metrics.jsonl")


def check(run: Path, metrics: list[dict], first_problem: str) -> None:
    """Three steps of finite numbers, an evaluation before and after, problems as the template wants them, a student."""
    steps = [row for row in metrics if "train/loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(math.isfinite(value) for row in metrics for value in row.values())
    assert all(row["train/abs_advantage_mean"] > 0.1 and row["train/grad_norm"] > 0 for row in steps)
    assert [row["eval/problems"] for row in metrics if "eval/accuracy" in row] == [6, 6]
    sample = rows(run / "samples.jsonl")[0]
    assert sample["prompt"] == f"<|user|>{first_problem}\n{SUFFIX}<|assistant|>"
    AutoModelForCausalLM.from_pretrained(run / "final")


def first(file: Path, column: str) -> str:
    return json.loads(file.read_text().splitlines()[0])[column]


@pytest.mark.parametrize("experiment", ["aime", "aime_same_size", "aime_exopd", "aime_iw_exopd"])
def test_an_experiment_trains_three_steps(experiment: str, models: list[str], tmp_path: Path) -> None:
    metrics = train(experiment, tmp_path, PROBLEMS, "aime24", PROBLEMS, *models, "rollout=hf")
    check(tmp_path, metrics, first(PROBLEMS, "problem"))


@pytest.mark.vllm
def test_with_vllm_and_the_tracking_of_the_paper(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a login wandb's files are kept on the disk, and the run continues."""
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    vllm = ("rollout=vllm", "rollout.engine.kv_cache_gib=0.25", "tracking=wandb")
    metrics = train("aime", tmp_path / "run", PROBLEMS, "aime24", PROBLEMS, *models, *vllm)
    check(tmp_path / "run", metrics, first(PROBLEMS, "problem"))
    assert max(row["sync/parity_max_gap"] for row in metrics if "sync/parity_max_gap" in row) < 0.5  # bfloat16
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_word_problems_whose_answers_are_solutions(models: list[str], tmp_path: Path) -> None:
    metrics = train("gsm8k_1gpu", tmp_path, WORD_PROBLEMS, "gsm8k", WORD_PROBLEMS, *models, "rollout=hf")
    check(tmp_path, metrics, first(WORD_PROBLEMS, "question"))
    sample: Any = rows(tmp_path / "samples.jsonl")[0]
    assert sample["answer"] == "37"  # of "… #### 37"
