"""Runs of two processes with real vLLM in them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.running import SMALL, process, rows

pytestmark = pytest.mark.vllm
TWO = ("parallel=fsdp", "parallel.processes=2", "run.steps=2", "eval.every=0", "run.samples=0")
SAME = 1e-4  # nats per token


@pytest.fixture
def left_by_a_killed_run() -> Iterator[None]:
    """Shared memory under the names that vLLM's CPU build gives it where one engine is over two ranks."""
    files = [Path(f"/dev/shm/-tp:0-[0-1]-cpushm_{rank}") for rank in range(2)]
    for file in files:
        file.touch()
    yield
    for file in files:
        file.unlink(missing_ok=True)


@pytest.mark.usefixtures("left_by_a_killed_run")
@pytest.mark.parametrize("shared", [1, 2], ids=["an engine per process", "one over both"])
def test_engines_of_the_ranks_hold_the_students_weights(shared: int, smoke_models: object, tmp_path: Path) -> None:
    """That the run ends well shows more: vLLM's shutdown would take down the processes' own groups."""
    engine = ("rollout=vllm", f"rollout.engine.tensor_parallel={shared}")
    # A forked process would leave its engine's shared memory: it ends without what libraries do at an exit.
    done = process("train", *SMALL, *TWO, *engine, f"run.dir={tmp_path / 'run'}", fresh=True)
    assert done.returncode == 0, done.stderr
    found = [row for row in rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    assert [row["sync/parity_max_gap"] < SAME for row in found] == [True, True]
