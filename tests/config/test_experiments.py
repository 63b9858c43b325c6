"""The paper's runs as presets: a table of the paper's values against what each experiment composes to."""

from dataclasses import asdict
from typing import Any

import pytest
from support.composing import REQUIRED, composed

STUDENT, TEACHER = "Qwen/Qwen3-4B", "Qwen/Qwen3-30B-A3B-Instruct-2507"
SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
BENCHMARKS = ["aime24", "aime25", "hmmt25"]

# "Training set-up of the released run", arXiv 2606.22600, row by row.
PAPER: dict[str, Any] = {
    "seed": 42,
    "student.path": STUDENT,
    "student.gradient_checkpointing": True,
    "student.lora.rank": 0,
    "teacher.path": TEACHER,
    "teacher.offload": True,
    "data.path": "zwhe99/DeepMath-103K",
    "data.filter": "difficulty >= 6",
    "data.suffix": SUFFIX,
    "data.enable_thinking": False,
    "data.batch_size": 1024,
    "data.max_prompt_tokens": 2048,
    "rollout.n": 1,
    "rollout.max_tokens": 16384,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "rollout.top_k": 0,
    "rollout.horizon": None,
    "weighting.scheme": "iw",
    "weighting.gamma": 0.5,
    "scoring.student_logprobs": "trainer",
    "loss.kind": "policy_gradient",
    "loss.normalize": "all",
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.2,
    "loss.dual_clip": 3.0,
    "loss.importance_cap": 5.0,
    "loss.exopd_lambda": 1.0,
    "optim.lr": 1e-5,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "optim.updates_per_batch": 1,
    "eval.every": 10,
    "eval.k": 32,
    "eval.n": None,
    "eval.temperature": 1.0,
    "eval.top_p": 1.0,
    "eval.top_k": 0,
    "eval.max_tokens": None,  # rollout's, 16,384
    "tracking.project": "iwopd",
}

# What each differs in from the released run, and nothing else may.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "aime": {},
    "aime_1.7b": {"student.path": "Qwen/Qwen3-1.7B"},
    "aime_0.6b": {"student.path": "Qwen/Qwen3-0.6B"},
    "aime_same_size": {"teacher.path": "Qwen/Qwen3-4B-Instruct-2507"},
    "aime_235b": {
        "student.path": "Qwen/Qwen3-30B-A3B",
        "teacher.path": "Qwen/Qwen3-235B-A22B-Instruct-2507",
    },
    "aime_exopd": {"loss.exopd_lambda": 1.25, "weighting.scheme": "uniform", "weighting.gamma": None},
    "aime_iw_exopd": {"loss.exopd_lambda": 1.25},
    "gsm8k_1gpu": {
        "student.path": "Qwen/Qwen3-0.6B",
        "teacher.path": "Qwen/Qwen3-4B",
        "data.path": "openai/gsm8k",
        "data.filter": None,
        "data.batch_size": 256,
        "data.max_prompt_tokens": 512,
        "rollout.max_tokens": 1024,
        "eval.k": 4,
    },
}


def values(name: str) -> dict[str, Any]:
    tree = asdict(composed(f"+experiment={name}", *REQUIRED.get(("experiment", name), [])))
    found: dict[str, Any] = {}
    for key in PAPER:
        node: Any = tree
        for part in key.split("."):
            node = node.get(part)
        found[key] = node
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_the_papers_values(name: str) -> None:
    assert values(name) == PAPER | EXPERIMENTS[name]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_evaluated_as_in_the_paper(name: str) -> None:
    config = composed(f"+experiment={name}", *REQUIRED.get(("experiment", name), []))
    assert list(config.eval.benchmarks) == (["gsm8k"] if name == "gsm8k_1gpu" else BENCHMARKS)
    assert {(benchmark.suffix, benchmark.grader) for benchmark in config.eval.benchmarks.values()} == {(SUFFIX, "math")}
    assert not config.eval.greedy


def test_every_line_that_is_not_the_papers_says_so() -> None:
    """What a derived experiment sets beyond `aime` is either named in EXPERIMENTS above or commented."""
    from iwopd.launch import config_folder

    body = (config_folder() / "experiment" / "gsm8k_1gpu.yaml").read_text().split("\n\n", 1)[1]
    lines = [line for line in body.splitlines() if ":" in line and not line.rstrip().endswith(":")]
    assert [line.strip() for line in lines if "#" not in line] == []


def test_the_mixture_holds_the_papers_two_prompt_sets() -> None:
    config = composed("+experiment=aime", "data=maths_and_code")
    maths, code = config.data.sources.values()
    assert (maths.path, maths.filter) == ("zwhe99/DeepMath-103K", "difficulty >= 6")
    assert (code.path, code.suffix) == ("PRIME-RL/Eurus-2-RL-Data", "")
    assert maths.weight / code.weight == 57 / 25
