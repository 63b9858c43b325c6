"""Trainings of two processes that torchrun starts; those that the program starts itself are in test_runs.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import forks
from support.running import ONE_THREAD, SMALL, rows

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("smoke_models")]

TWO = (*SMALL, "parallel=fsdp", "parallel.processes=2", "eval.every=0", "run.save_every=0")


def test_torchrun_gives_all_one_folder_and_a_mistake_is_said_once(tmp_path: Path) -> None:
    def torchrun(*overrides: str) -> tuple[int, str, str]:
        program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "iwopd", "train"]
        settings = [each for each in TWO if not each.startswith("parallel.processes")]
        running = (forks.Popen if forks.POSSIBLE else subprocess.Popen)(
            [*program, *settings, "run.steps=1", *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=ONE_THREAD,
        )
        out, errors = running.communicate()
        return running.returncode, out, errors

    status, _, errors = torchrun("student.path=/none")
    assert status != 0
    assert errors.count("iwopd: student.path=/none") == 1
    assert not list(tmp_path.iterdir())
    status, out, errors = torchrun()
    assert status == 0, errors
    (folder,) = (tmp_path / "runs").iterdir()
    assert [row["step"] for row in rows(folder / "metrics.jsonl")] == [0, 1, 1]
    assert (folder / "final" / "model.safetensors").is_file()
    assert os.path.basename(folder) in out
