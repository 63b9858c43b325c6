"""`iwopd train +experiment=smoke` as people run it: does it learn, and is it the same twice?"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def train(run: Path, device: torch.device, *overrides: str) -> float:
    """The smoke experiment from the command line; seconds."""
    start = time.perf_counter()
    given = ["+experiment=smoke", f"run.dir={run}", f"run.device={device}", *overrides]
    command = [sys.executable, "-m", "iwopd", "train", *given]
    subprocess.run(command, cwd=run.parent, stdout=sys.stderr, check=True, timeout=300)
    return time.perf_counter() - start


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def smoke(device: torch.device) -> dict[str, Any]:
    """Twice, toy models included: accuracy before and after, and whether both end in the same bits."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = (Path(folder) / name for name in ("first", "second"))
        seconds = [train(first, device), train(second, device)]
        metrics = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
        ours, theirs = weights(first), weights(second)
    accuracies = [row["eval/accuracy"] for row in metrics if "eval/accuracy" in row]
    repeats = all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return {
        "ok": repeats and accuracies[-1] > accuracies[0],
        "seconds": [round(each, 1) for each in seconds],
        "accuracy_first": accuracies[0],
        "accuracy_last": accuracies[-1],
        "same_bits_twice": repeats,
    }


def smoke_compiled(device: torch.device) -> dict[str, Any]:
    """The same with torch.compile, sequences of many lengths."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        seconds = train(run, device, "student.compile=true", "teacher.compile=true", "run.steps=6", "run.samples=0")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [sum(row[key] for key in row if key.startswith("time/")) for row in rows if "train/loss" in row]
    gap = max(row["train/sampler_gap_mean"] for row in rows if "train/loss" in row)
    return {"ok": gap < 1e-3, "seconds": round(seconds, 1), "step_s": [round(s, 2) for s in steps], "sampler_gap": gap}


def parallel(device: torch.device, gpus: int) -> dict[str, Any]:
    """Several processes against one. On GPUs, a sampled token may differ by rounding, and what is learnt from it."""
    with tempfile.TemporaryDirectory() as folder:
        one, several = (Path(folder) / name for name in ("one", "several"))
        train(one, device)
        seconds = train(several, device, "parallel=fsdp", f"parallel.processes={gpus}")
        ours, theirs = weights(several), weights(one)
    gap = sum((ours[name] - theirs[name]).double().square().sum() for name in theirs)
    relative = float((gap / sum(weight.double().square().sum() for weight in theirs.values())) ** 0.5)
    return {"processes": gpus, "seconds": round(seconds, 1), "weights_rel": relative, "ok": relative < 1e-2}
