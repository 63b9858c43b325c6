"""scripts/slurm/train.sbatch, with programs of Slurm's names that note how they were called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.paths import REPOSITORY

pytestmark = pytest.mark.process
SCRIPT = REPOSITORY / "scripts" / "slurm" / "train.sbatch"

PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then printf "gpu1\\ngpu2\\ngpu3\\n"; else echo "scontrol $*" >> "$NOTES"; fi',
    "curl": "exit 0",
    # The training waits for SIGUSR1 where it is told to, and leaves as one that saved; servers run until killed.
    "srun": 'echo "srun $*" >> "$NOTES"; case "$*" in *"iwopd train"*) [ -n "$WAITS" ] || exit "${STATUS:-0}"; '
    'trap "exit ${STATUS:-138}" USR1; touch "$NOTES.up"; while :; do sleep 0.05; done;; *) exec sleep 60;; esac',
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_JOB_NODELIST": "gpu[1-3]",
        "SLURM_CPUS_PER_TASK": "64",
    }
    return {
        **os.environ,
        **slurm,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes"),
        "WAITS": "",
    }


def notes(environment: dict[str, str]) -> list[str]:
    return Path(environment["NOTES"]).read_text().splitlines()


def test_all_machines_train_where_there_are_no_servers(environment: dict[str, str]) -> None:
    done = subprocess.run(["bash", SCRIPT, "+experiment=aime", "run.name=mine"], env=environment, check=False)
    assert done.returncode == 0
    (training,) = notes(environment)
    assert "--nodes=3 --ntasks=24 --ntasks-per-node=8 --nodelist=gpu1,gpu2,gpu3" in training
    assert training.endswith(
        "iwopd train parallel=fsdp run.name=iwopd-7 +experiment=aime run.name=mine run.resume=true"
    )


def test_servers_have_machines_of_their_own(environment: dict[str, str]) -> None:
    environment |= {"TRAINERS": "1", "SAMPLERS": "1", "TENSOR_PARALLEL": "4"}
    done = subprocess.run(["bash", SCRIPT, "+experiment=aime_235b"], env=environment, check=False)
    assert done.returncode == 0
    (training,) = (each for each in notes(environment) if "iwopd train" in each)
    servers = [each for each in notes(environment) if each != training]
    assert [next(word for word in each.split() if word.startswith("--nodelist")) for each in sorted(servers)] == [
        *2 * ["--nodelist=gpu2"],
        "--nodelist=gpu3",
    ]
    assert sum("CUDA_VISIBLE_DEVICES=4,5,6,7" in each for each in servers) == 1
    assert "rollout.urls=[http://gpu2:8000,http://gpu2:8001]" in training
    assert "scoring.urls=[http://gpu3:8000]" in training
    assert "--nodes=1 --ntasks=8" in training


@pytest.mark.parametrize(("status", "again"), [("138", True), ("143", True), ("2", False)])
def test_a_run_that_was_told_to_save_is_queued_again(status: str, again: bool, environment: dict[str, str]) -> None:
    with subprocess.Popen(["bash", SCRIPT], env=environment | {"WAITS": "1", "STATUS": status}) as running:
        try:
            deadline = time.monotonic() + 60
            while not Path(environment["NOTES"] + ".up").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            running.send_signal(signal.SIGUSR1)
            assert running.wait(timeout=60) == int(status)
        finally:
            running.kill()
    assert ("scontrol requeue 7" in notes(environment)) == again


def test_more_machines_than_the_job_has(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", SCRIPT], env=environment | {"TRAINERS": "4"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        2,
        "TRAINERS=4, SAMPLERS=0: the job has 3 machines; ask for more with --nodes\n",
    )
