"""Trainings of two processes that torchrun starts; those that the program starts itself are in test_runs.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import ONE_THREAD, SMALL, rows

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("smoke_models")]

TWO = (*SMALL, "parallel=fsdp", "parallel.processes=2", "eval.every=0", "run.save_every=0")


def test_torchrun_gives_all_one_folder_and_a_mistake_is_said_once(tmp_path: Path) -> None:
    def torchrun(*overrides: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "iwopd", "train"]
        settings = [each for each in TWO if not each.startswith("parallel.processes")]
        return subprocess.run(
            [*program, *settings, "run.steps=1", *overrides], capture_output=True, text=True, cwd=tmp_path,
            env=ONE_THREAD, check=False,
        )  # fmt: skip

    done = torchrun("student.path=/none")
    assert done.returncode != 0
    assert done.stderr.count("iwopd: student.path=/none") == 1
    assert not list(tmp_path.iterdir())
    done = torchrun()
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert [row["step"] for row in rows(folder / "metrics.jsonl")] == [0, 1, 1]
    assert (folder / "final" / "model.safetensors").is_file()
    assert os.path.basename(folder) in done.stdout
