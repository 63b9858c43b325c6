"""What stops a run besides Ctrl-C: signals of schedulers and terminals, and output that nobody reads any more."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import ONE_THREAD, SMALL, start, wait_for_line

from iwopd.runs.interrupts import STOPPING, ForcedStop, Interrupts, Stopped

pytestmark = pytest.mark.usefixtures("smoke_models")
LONG = [*SMALL, "run.steps=500", "run.save_every=0", "eval.every=0"]  # so that only the stop can have saved


@pytest.mark.parametrize("number", STOPPING)
def test_every_one_is_a_stop_with_its_own_status(number: signal.Signals) -> None:
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        wanted = signal.getsignal(number)  # what a process has that does not ignore it, as one under nohup does
        with pytest.raises(Stopped) as stopped, Interrupts():
            os.kill(os.getpid(), number)
        assert stopped.value.status == 128 + number
        assert signal.getsignal(number) == wanted
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("decided", [signal.SIG_IGN, lambda number, frame: None])
def test_what_is_ignored_or_handled_already_stays_so(decided: object) -> None:
    before = signal.signal(signal.SIGHUP, decided)  # pyright: ignore
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is decided
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGXCPU, signal.SIGUSR1])
def test_a_scheduler_that_repeats_itself_forces_nothing(second: signal.Signals) -> None:
    done = []

    def change() -> None:
        with Interrupts() as interrupts, interrupts.deferred():
            for number in (signal.SIGINT, second, second):
                os.kill(os.getpid(), number)
            done.append("whole")

    with pytest.raises(Stopped) as stopped:
        change()
    assert done == ["whole"]
    assert stopped.value.status == 130


def test_asked_again_while_it_saves_it_ends_with_the_first_status() -> None:
    done = []
    with Interrupts() as interrupts:
        with interrupts.finishing(), interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("saved")
        done.append("said so")

        def insist() -> None:
            with interrupts.finishing():
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(ForcedStop):
            insist()
    assert done == ["saved", "said so"]


def saved_step(folder: Path) -> int:
    (checkpoint,) = (folder / "checkpoints").iterdir()
    return json.loads((checkpoint / "trainer.json").read_text())["step"]


@pytest.mark.process
def test_a_run_whose_output_nobody_reads_is_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = start("train", *LONG, f"run.dir={folder}")
    wait_for_line(running, "step 1")
    assert running.stdout is not None
    running.stdout.close()
    assert running.wait(timeout=120) == 141
    assert running.stderr is not None
    assert running.stderr.read() == ""
    running.stderr.close()
    step = saved_step(folder)
    assert step >= 1
    assert f"stopped after step {step}/500, saved" in (folder / "train.log").read_text()
    assert f"{step} of 500 so far" in (folder / "report.html").read_text("utf-8")


@pytest.mark.process
def test_nohup_and_then_a_schedulers_warning(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does for the process it starts
    try:
        running = start("train", *LONG, f"run.dir={tmp_path / 'run'}")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_line(running, "step 1")
    running.send_signal(signal.SIGHUP)
    wait_for_line(running, "step 2")
    running.send_signal(signal.SIGUSR1)
    out, errors = running.communicate(timeout=120)
    assert (running.returncode, errors) == (128 + signal.SIGUSR1, "")
    assert "saved; resume with" in out
    assert saved_step(tmp_path / "run") >= 2


@pytest.mark.process
def test_names_of_any_script_in_an_ascii_world(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    settings = ['run.name="é :100: [red]数"', 'eval.benchmarks.smoke.suffix="é"', "run.steps=0"]
    done = subprocess.run(
        [sys.executable, "-m", "iwopd", "train", *SMALL, *settings],
        capture_output=True,
        cwd=tmp_path,
        env={**ONE_THREAD, **ascii_only},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b":100: [red]" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "é :100: [red]数"
    assert "é" in (folder / "samples.jsonl").read_text(encoding="utf-8")
