"""Runs of two real processes: what they learn, what they save, and how they end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.running import SMALL, iwopd, process, start, wait_for_line
from torch import Tensor
from transformers import AutoModelForCausalLM

from iwopd.parallel import launcher

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("smoke_models")]
TWO = ("parallel=fsdp", "parallel.processes=2")
REWARDED = ("reward.weight=0.5", "data.answer_column=answer", "rollout.n=2", "data.batch_size=4")
ALL = (*SMALL, "run.keep=0", *REWARDED)
LONG = (*SMALL, "run.steps=500", "run.save_every=0", "eval.every=0")
SAME = 1e-6


def final(run: Path) -> dict[str, Tensor]:
    return load_file(run / "final" / "model.safetensors")


def distance(one: Path, other: Path) -> float:
    """Of the final weights, relative."""
    ours, theirs = final(one), final(other)
    assert ours.keys() == theirs.keys()
    gap = sum((ours[name] - theirs[name]).double().square().sum() for name in ours)
    return float((gap / sum(weight.double().square().sum() for weight in ours.values())).sqrt())


def measured(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what clocks and memory say."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if not key.startswith(("time", "memory"))} for row in rows]


def without_end(run: Path, copy: Path) -> Path:
    """A copy of the run as it was when step 2 of 4 was saved."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "final")
    shutil.rmtree(copy / "checkpoints" / "step-000004")
    return copy


def ranks_of(job: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train, in the order of ranks."""
    return sorted(psutil.Process(job.pid).children(), key=lambda child: child.create_time())


def ended(job: "subprocess.Popen[str]", ranks: list[psutil.Process]) -> tuple[int, str]:
    """Exit status and output; no process is left behind."""
    out, err = job.communicate(timeout=120)
    assert [each for each in ranks if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
    return job.returncode, out + err


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    done = process("train", *ALL, f"run.dir={run}")
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("two") / "run"
    done = process("train", *ALL, *TWO, f"run.dir={run}", fresh=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy 0.") == 1, "the end is said once"
    assert not list(run.glob("rank-*"))
    return run


def test_they_learn_what_one_does(one: Path, two: Path) -> None:
    assert distance(one, two) < SAME
    for ours, theirs in zip(measured(one), measured(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert sorted(path.name for path in (two / "final").iterdir()) == sorted(p.name for p in (one / "final").iterdir())
    loaded = AutoModelForCausalLM.from_pretrained(two / "final", dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in final(two).items())


def test_what_two_saved_two_resume_bit_by_bit(two: Path, tmp_path: Path) -> None:
    half = without_end(two, tmp_path / "half")
    done = process("train", *ALL, *TWO, f"run.dir={half}", "run.resume=true")
    assert done.returncode == 0, done.stderr
    assert distance(half, two) == 0.0
    assert measured(half) == measured(two)


def test_what_two_saved_one_resumes_to_rounding(two: Path, tmp_path: Path) -> None:
    half = without_end(two, tmp_path / "half")
    assert iwopd("train", *ALL, f"run.dir={half}", "run.resume=true") == 0
    assert distance(half, two) < SAME


def test_what_one_saved_two_resume_to_rounding(one: Path, tmp_path: Path) -> None:
    half = without_end(one, tmp_path / "half")
    done = process("train", *ALL, *TWO, f"run.dir={half}", "run.resume=true")
    assert done.returncode == 0, done.stderr
    assert distance(half, one) < SAME


def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path: Path) -> None:
    number = signal.SIGUSR1  # that all of `STOPPING` are stops of a process is tested in test_stops.py
    job = start("train", *LONG, *TWO, f"run.dir={tmp_path / 'run'}", fresh=True)
    wait_for_line(job, "step 2/")
    ranks = ranks_of(job)
    ranks[1].send_signal(number)
    status, said = ended(job, ranks)
    assert status == 128 + number
    assert said.count("saved; resume with") == 1
    [saved] = (tmp_path / "run" / "checkpoints").iterdir()
    assert f"stopped after step {int(saved.name[5:])}/500, saved" in said
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_job_stops_it_in_order(number: signal.Signals, tmp_path: Path) -> None:
    job = start("train", *LONG, *TWO, f"run.dir={tmp_path / 'run'}")
    wait_for_line(job, "step 1/")
    ranks = ranks_of(job)
    job.send_signal(number)
    status, said = ended(job, ranks)
    assert status == 128 + number
    assert said.count("saved; resume with") == 1
    assert "Traceback" not in said
    [saved] = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name.startswith("step-")


def test_a_killed_rank_ends_the_run_and_it_is_resumed_bit_by_bit(two: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start("train", *ALL, *TWO, f"run.dir={run}")
    wait_for_line(job, "step 3/")
    ranks = ranks_of(job)
    ranks[1].kill()
    status, said = ended(job, ranks)
    assert status == 137
    assert "iwopd: process 1 of 2 was killed by SIGKILL" in said
    assert "Traceback" not in said
    assert process("train", *ALL, *TWO, f"run.dir={run}", "run.resume=true").returncode == 0
    assert distance(run, two) == 0.0


def test_ranks_end_when_the_command_is_killed(tmp_path: Path) -> None:
    job = start("train", *LONG, *TWO, f"run.dir={tmp_path / 'run'}")
    wait_for_line(job, "step 1/")
    ranks = ranks_of(job)
    job.kill()
    gone, left = psutil.wait_procs(ranks, timeout=60)
    job.communicate()  # closes its pipes
    assert (len(gone), left) == (2, [])


@pytest.mark.parametrize(
    ("fault", "rank", "says"),
    [
        ("bug", 1, "raised KeyError: 'a bug'"),
        ("memory", 1, "resume with optim.micro_batch_tokens="),
        ("hang", 1, "did not answer within 5 s"),
    ],
)
def test_a_fault_on_one_rank_ends_all_with_its_reason(
    fault: str,
    rank: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = (
        "weighting=custom",
        "weighting.path=support.faults:weights",
        "run.samples=0",
        "parallel.timeout_s=5",
        "parallel.wait_s=5",
    )
    for name, value in {"FAULT": fault, "FAULT_RANK": str(rank), "PYTHONPATH": os.pathsep.join(sys.path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher, "INSISTING", 0.5)  # a rank that hangs in a step does not hear that it should stop
    assert iwopd("train", *LONG, *TWO, *settings, f"run.dir={tmp_path / 'run'}") != 0
    said = capfd.readouterr().err
    assert said.count(says) == 1, said
