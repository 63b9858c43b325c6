"""Runs of two processes with real vLLM in them."""

from pathlib import Path

import pytest
from support.running import SMALL, process, rows

pytestmark = pytest.mark.vllm
TWO = ("parallel=fsdp", "parallel.processes=2", "run.steps=2", "eval.every=0", "run.samples=0")
SAME = 1e-4  # nats per token


@pytest.mark.parametrize("shared", [1, 2], ids=["an engine per process", "one over both"])
def test_engines_of_the_ranks_hold_the_students_weights(shared: int, smoke_models: object, tmp_path: Path) -> None:
    """That the run ends well shows more: vLLM's shutdown would take down the processes' own groups."""
    engine = ("rollout=vllm", f"rollout.engine.tensor_parallel={shared}")
    done = process("train", *SMALL, *TWO, *engine, f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    found = [row for row in rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    assert [row["sync/parity_max_gap"] < SAME for row in found] == [True, True]
