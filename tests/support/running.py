"""Ways to run the program from tests: in this process, or as a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from iwopd.cli import VERBS
from iwopd.launch import launch
from support import compositions, forks
from support.tiers import check_command, check_training

# The smallest training that has every part: 4 steps, evaluations and checkpoints at 0, 2 and 4.
SMALL = (
    "+experiment=smoke",
    "run.steps=4",
    "run.save_every=2",
    "eval.every=2",
    "eval.benchmarks.smoke.limit=8",
    "data.batch_size=8",
    "data.limit=64",
    "rollout.max_tokens=24",
    "run.samples=2",
)

# As in this process (see conftest): sums over another number of threads round differently.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def iwopd(verb: str, *overrides: str) -> int:
    """Run a verb in this process, and what trains in processes of its own in forked ones; the exit status."""
    check_command()
    compositions.keep()
    before = sys.argv
    with pytest.MonkeyPatch.context() as patch:
        if forks.POSSIBLE:
            patch.setattr(subprocess, "Popen", forks.Popen)
        try:
            launch(verb, VERBS[verb][0], overrides)
        except SystemExit as stop:
            return int(stop.code or 0)
        finally:
            sys.argv = before
    if verb == "train":
        check_training()
    return 0


def refused(capsys: pytest.CaptureFixture[str], verb: str, *overrides: str) -> str:
    """Run a verb that must refuse its input: status 2 and one line on standard error, which is returned."""
    capsys.readouterr()
    assert iwopd(verb, *overrides) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("iwopd: ")
    return lines[0]


def process(
    *arguments: str, cwd: Path | None = None, fresh: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m iwopd ARGUMENTS` as a process of its own.

    Args:
        fresh: of an interpreter that has imported nothing yet; otherwise what trains is forked from one that has torch
            already, which spares seconds, see `forks`.
    """
    running = _popen(arguments, fresh)(
        [sys.executable, "-u", "-m", "iwopd", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**ONE_THREAD, **environment},
    )
    out, errors = running.communicate()
    return subprocess.CompletedProcess(running.args, running.returncode, out, errors)


def start(*arguments: str, start_new_session: bool = False, fresh: bool = False) -> subprocess.Popen[str]:
    """The same, in the background; standard output is a pipe."""
    return _popen(arguments, fresh)(
        [sys.executable, "-u", "-m", "iwopd", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
        start_new_session=start_new_session,
    )


def _popen(arguments: Sequence[str], fresh: bool) -> "type[subprocess.Popen[str]]":
    return subprocess.Popen if fresh or not forks.POSSIBLE or arguments[0] not in ("train", "ablate") else forks.Popen


def wait_for_line(running: subprocess.Popen[str], start_of_line: str) -> None:
    """Read a background process's output up to a line."""
    assert running.stdout is not None
    seen: list[str] = []
    for line in running.stdout:
        seen.append(line)
        if line.startswith(start_of_line):
            return
    raise AssertionError(f"{start_of_line!r} never came: {''.join(seen)} {running.stderr and running.stderr.read()}")


def rows(file: Path) -> list[dict]:
    """The objects of a jsonl file."""
    return [json.loads(line) for line in file.read_text().split("\n") if line]  # splitlines splits at U+2028 too


def weights(folder: Path) -> bytes:
    """A model's weights, to the bit."""
    return (folder / "model.safetensors").read_bytes()


def without_times(found: Sequence[dict]) -> list[dict]:
    """Metrics of a run, less what the clock and the machine's memory say."""
    return [{key: value for key, value in row.items() if not key.startswith(("time", "memory/"))} for row in found]
