"""Folders of training runs that never ran, of any size: what a report reads, with numbers as a run might have them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy
import yaml

CONFIG: dict[str, Any] = {
    "schema": 3,
    "verb": "train",
    "seed": 1,
    "run": {"steps": 1000, "tokens": None},
    "student": {"path": "a/student"},
    "teacher": {"path": "a/teacher"},
    "data": {"batch_size": 64},
    "rollout": {"n": 1, "max_tokens": 16384},
    "weighting": {"scheme": "iw", "gamma": 0.5},
    "loss": {"kind": "policy_gradient"},
    "optim": {"lr": 1e-5},
    "eval": {"benchmarks": {"maths": {}}},
}


def written_run(
    folder: Path, *, steps: int = 20, every: int = 10, kept: int = 4, tokens: int = 40, seed: int = 0
) -> Path:
    """A run that was evaluated every so many steps, with `kept` responses of about `tokens` tokens at each of the first
    and the last evaluation."""
    drawn = numpy.random.default_rng(seed)
    (folder / "final").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False, explicit_end=True))
    (folder / "about.json").write_text(json.dumps({"overrides": ["optim.lr=1e-5"]}))
    metrics = [row for step in range(steps + 1) for row in step_rows(step, every, drawn)]
    _write(folder / "metrics.jsonl", metrics)
    _write(folder / "positions.jsonl", [position_row(step, drawn) for step in range(1, steps + 1)])
    samples = [
        sample(step, place, tokens, drawn) for step in sorted({0, steps // every * every}) for place in range(kept)
    ]
    _write(folder / "samples.jsonl", samples)
    return folder


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def step_rows(step: int, every: int, drawn: numpy.random.Generator) -> list[dict[str, Any]]:
    """What metrics.jsonl has of a step, and of the evaluation after it."""
    gain, noise = 1 - math.exp(-step / 300), float(drawn.normal(0, 0.02))
    rows = []
    if step:
        size = 1.5 - gain + noise
        rows.append(
            {
                "step": step,
                "train/loss": size,
                "train/reverse_kl": size,
                "train/abs_advantage_mean": size + 0.1,
                "train/response_length": 9000 + 4000 * gain,
                "train/length_p50": 8000.0,
                "train/length_p90": 16000.0,
                "train/finished": 0.6 + 0.3 * gain,
                "train/truncated": 0.4 - 0.3 * gain,
                "train/horizon": 16384,
                "train/lr": 1e-5,
                "train/grad_norm": 1.0 + noise,
                "train/sampler_gap_mean": 2e-3 + noise**2,
                "sync/parity_mean_gap": 1e-3,
                "sync/parity_max_gap": 2e-2,
                "tokens/generated": 576000,
                "tokens/scored": 600000,
                "tokens/trained": 576000,
                "time/rollout_s": 40 + 10 * noise,
                "time/score_s": 9.0,
                "time/update_s": 22.0,
                "time/sync_s": 2.0,
                "memory/rollout_mib": 9000.0,
                "memory/update_mib": 12000.0,
                "memory/peak_mib": 60000.0,
            }
        )
    if step % every == 0:
        share = 0.2 + 0.5 * gain + noise
        bounds = {"eval/accuracy_low": share - 0.05, "eval/accuracy_high": share + 0.05}
        rows.append(
            {
                "step": step,
                "eval/accuracy": share,
                **bounds,
                "eval/pass_at_k": share + 0.1,
                "eval/k": 4,
                "eval/truncated": 0.4 - 0.3 * gain,
                "time/eval_s": 60.0,
                "memory/eval_mib": 9000.0,
            }
        )
    return rows


def position_row(step: int, drawn: numpy.random.Generator) -> dict[str, Any]:
    """What positions.jsonl has of a step."""
    sizes = [round(1.5 / (1 + tenth) / (1 + step / 500) + float(drawn.normal(0, 0.02)), 5) for tenth in range(10)]
    return {"step": step, "tokens": [57600] * 10, "abs_advantage": sizes, "reverse_kl": sizes}


def sample(step: int, place: int, tokens: int, drawn: numpy.random.Generator) -> dict[str, Any]:
    """A row of samples.jsonl: mostly tokens of which both models are sure, and some on which they differ."""
    student = -drawn.exponential(1.0, tokens) * (drawn.random(tokens) < 0.35) - drawn.exponential(0.004, tokens)
    teacher = student + drawn.normal(0, 0.15, tokens) * (drawn.random(tokens) < 0.5)
    teacher = numpy.minimum(teacher - drawn.exponential(4.0, tokens) * (drawn.random(tokens) < 0.04), 0.0)
    words = drawn.zipf(1.3, tokens) % 30000
    texts = [f" w{word}" if word else "\n" for word in words.tolist()]
    student, teacher = student.round(5), teacher.round(5)
    shares = numpy.abs(teacher - student).cumsum() / max(numpy.abs(teacher - student).sum(), 1e-9)
    return {
        "step": step,
        "benchmark": "maths",
        "prompt_id": f"test-{place}",
        "sample": 0,
        "prompt": f"What is {place} + {place}?",
        "response": "".join(texts),
        "answer": str(2 * place),
        "correct": (place + step) % 2 == 0,
        "finish_reason": "length" if place % 3 == 0 else "stop",
        "tokens": texts,
        "sampler_logprobs": student.tolist(),
        "start": 0,
        "progress": 0.0,
        "student_logprobs": student.tolist(),
        "teacher_logprobs": teacher.tolist(),
        "advantages": (teacher - student).round(5).tolist(),
        "weights": (1.5 - 0.5 * shares).round(5).tolist(),
    }
