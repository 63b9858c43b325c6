"""Trainings of two processes, started by the program itself and by torchrun, with real models; stopped and killed."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.running import ONE_THREAD, SMALL, rows, start, wait_for_line

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("smoke_models")]

TWO = (*SMALL, "parallel=fsdp", "parallel.processes=2", "eval.every=0", "run.save_every=0")


def ranks(running: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(running.pid).children()
    return sorted(found, key=lambda each: int(each.environ()["RANK"]))


def ended(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    left = list[psutil.Process]()
    with suppress(psutil.NoSuchProcess):  # it has ended already
        left = psutil.Process(running.pid).children(recursive=True)
    out, errors = running.communicate(timeout=120)
    _, alive = psutil.wait_procs(left, timeout=0)
    assert not alive
    return running.returncode, out, errors


def test_ctrl_c_saves_once_and_says_so_once(tmp_path: Path) -> None:
    running = start("train", *TWO, "run.steps=500", f"run.dir={tmp_path / 'run'}")
    wait_for_line(running, "step 1")
    running.send_signal(signal.SIGINT)
    status, out, errors = ended(running)
    assert (status, errors) == (130, "")
    assert out.count("saved; resume with") == 1
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name.startswith("step-")


def test_a_rank_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    running = start("train", *TWO, "run.steps=500", f"run.dir={tmp_path / 'run'}")
    wait_for_line(running, "step 1")
    ranks(running)[1].kill()
    status, _, errors = ended(running)
    assert status == 137
    assert "iwopd: process 1 of 2 was killed by SIGKILL" in errors
    assert "Traceback" not in errors


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
