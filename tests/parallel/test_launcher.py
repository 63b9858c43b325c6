"""Ranks as real processes: one exit status for all, signals passed on once, nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.running import ONE_THREAD

pytestmark = pytest.mark.process

RANK = "import os, signal, sys, time; rank = int(os.environ['RANK']); "
# Says that it is there, and waits for signals: prints each and leaves with 128 + n once it was asked often enough.
WAITS = (
    RANK
    + "heard = [];\n"
    + "def note(number, frame):\n"
    + "    heard.append(number); print(f'rank {rank} heard {number}', flush=True)\n"
    + "for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1): signal.signal(each, note)\n"
    + "open(os.path.join(sys.argv[1], f'up-{rank}'), 'w').close()\n"
    + "while len(heard) < int(sys.argv[2]): time.sleep(0.02)\n"
    + "sys.exit(128 + heard[0])"
)


def job(
    code: str, *arguments: object, count: int = 3, folder: Path = Path("/nowhere"), grace: float = 0.5
) -> subprocess.Popen[str]:
    """A launcher as a process of its own, of ranks that are a few lines of Python."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    launcher = (
        "import os, signal, sys; from pathlib import Path; from iwopd.parallel import launcher;"
        "from iwopd.runs.interrupts import FOLLOW;"
        f"launcher.SAVING = launcher.INSISTING = 0.5; job = launcher.Job({command!r}, {count}, "
        f"{{FOLLOW: str(os.getpid())}}, Path({str(folder)!r}), {grace});"
        "sys.exit(job.run([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", launcher], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD
    )


def ended(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, standard output and error; and no rank is left."""
    ranks = list[psutil.Process]()
    with suppress(psutil.NoSuchProcess):  # it has ended already
        ranks = psutil.Process(running.pid).children()
    try:
        out, errors = running.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        running.kill()
        raise
    _, alive = psutil.wait_procs(ranks, timeout=0)
    assert not alive
    return running.returncode, out, errors


def wait_for(files: Sequence[Path]) -> None:
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def up(folder: Path, count: int = 3) -> list[Path]:
    return [folder / f"up-{rank}" for rank in range(count)]


@pytest.mark.parametrize("status", [0, 2, 3, 130, 137, 143])
def test_the_exit_status_is_the_ranks(status: int) -> None:
    found, out, errors = ended(job(RANK + f"print('rank', rank); sys.exit({status})"))
    assert (found, out, errors) == (status, "rank 0\n", ""), "rank 0 alone has the terminal, and it has said why"


def test_each_rank_finds_the_others_by_its_environment(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    code = RANK + f"print(*(os.environ[n] for n in {names}), file=open(os.path.join(sys.argv[1], str(rank)), 'w'))"
    assert ended(job(code, tmp_path))[0] == 0
    found = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    ports = {each.pop() for each in found}
    assert len(ports) == 1
    assert found == [[str(rank), str(rank), "3", "3", "127.0.0.1"] for rank in range(3)]


def test_a_rank_that_was_killed_is_named_with_its_signal() -> None:
    code = RANK + "rank == 1 and os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)"
    assert ended(job(code)) == (
        137,
        "",
        "iwopd: process 1 of 3 was killed by SIGKILL, as the system does where memory runs out, and the others ended "
        "with it\n",
    )


def test_the_first_that_fails_decides_and_the_others_are_not_left_behind() -> None:
    """One of the others does not hear SIGTERM."""
    code = (
        RANK + "rank == 0 and signal.signal(signal.SIGTERM, signal.SIG_IGN); rank == 2 and sys.exit(3); time.sleep(60)"
    )
    found, _, errors = ended(job(code))
    assert (found, errors) == (3, "iwopd: process 2 of 3 failed with status 3, and the others ended with it\n")


def test_the_output_of_a_rank_that_failed_is_kept(tmp_path: Path) -> None:
    code = RANK + "rank and print('so it ended', file=sys.stderr) or rank and sys.exit(1)"
    assert "so it ended\niwopd: process 1 of 2 failed with status 1" in ended(job(code, count=2, folder=tmp_path))[2]
    assert not list(tmp_path.iterdir()), "a folder that the run has not made stays as it is"
    (tmp_path / "config.yaml").touch()
    assert ended(job(code, count=2, folder=tmp_path))[2].endswith(f"; its output is in {tmp_path / 'rank-1.log'}\n")
    assert (tmp_path / "rank-1.log").read_text() == "so it ended\n"


def test_ctrl_c_is_passed_on_as_often_as_it_comes_and_others_once(tmp_path: Path) -> None:
    running = job(WAITS, tmp_path, 4)
    wait_for(up(tmp_path))
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        running.send_signal(number)
        time.sleep(0.2)
    heard = "".join(
        f"rank 0 heard {each.value}\n" for each in (signal.SIGUSR1, signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    )
    assert ended(running) == (128 + signal.SIGUSR1, heard, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rank_without_a_handler_ends_by_the_signal_and_so_does_the_job(
    number: signal.Signals, tmp_path: Path
) -> None:
    code = RANK + "signal.signal(signal.SIGINT, signal.SIG_DFL); open(f'{sys.argv[1]}/up-{rank}', 'w'); time.sleep(60)"
    running = job(code, tmp_path)
    wait_for(up(tmp_path))
    running.send_signal(number)
    assert ended(running) == (128 + number, "", "")


def test_a_signal_to_one_rank_alone_is_its_own_end(tmp_path: Path) -> None:
    """As `kill` of one of them; which ranks it signals is its own matter, and those that it did not are stopped."""
    running = job(WAITS, tmp_path, 1)
    wait_for(up(tmp_path))
    ranks = [each for each in psutil.Process(running.pid).children() if "up-" in " ".join(each.cmdline())]
    ranks[0].send_signal(signal.SIGTERM)
    status, _, _ = ended(running)
    assert status == 143


def test_ranks_end_when_the_launcher_is_killed(tmp_path: Path) -> None:
    follows = "import os, time; from iwopd.runs.interrupts import follow_parent; follow_parent();"
    running = job(
        follows + "open(f\"{os.sys.argv[1]}/up-{os.environ['RANK']}\", 'w'); time.sleep(60)", tmp_path, count=2
    )
    wait_for(up(tmp_path, 2))
    ranks = psutil.Process(running.pid).children()
    assert len(ranks) == 2
    running.kill()
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert not alive
    running.communicate()


def test_of_a_job_that_cannot_start_nothing_is_left() -> None:
    from iwopd.parallel.launcher import Job

    before, children = signal.getsignal(signal.SIGTERM), psutil.Process(os.getpid()).children()
    with pytest.raises(FileNotFoundError):
        Job(["/no/such/program"], 2, {}, Path("/nowhere")).run([signal.SIGTERM])
    assert signal.getsignal(signal.SIGTERM) is before
    assert psutil.Process(os.getpid()).children() == children
