"""`iwopd train parallel.processes=N`: everything is checked once, and N processes train."""

import os
import signal
import sys
from pathlib import Path

from iwopd.ablate.arms import CommandLine, override
from iwopd.config import Config, FsdpConfig
from iwopd.config.stored import stored
from iwopd.machine import runtime
from iwopd.parallel.launcher import GRACE, Job
from iwopd.preflight.checks import check_inputs
from iwopd.runs.files import read_rows
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import ALWAYS, FOLLOW, STOPPING
from iwopd.training.resume import another_end


def run(config: Config, line: CommandLine) -> float | None:
    """Train in several processes, and return the last accuracy; None without a benchmark. Leaves with their exit status
    where one of them failed.

    Raises:
        IwopdError: bad input; no process was started.
    """
    assert config.run.dir is not None, "launch settles it"
    count, path = config.parallel.started, Path(config.run.dir)
    RunFolder(path, stored(config, "train"), resume=config.run.resume, may_differ=another_end(config, path)).check()
    check_inputs(config)
    # One folder, name and date for all.
    settled = [override(f"run.{key}", getattr(config.run, key)) for key in ("dir", "name", "date")]
    command = [sys.executable, "-m", "iwopd", "train", *line.flags, *line.overrides, *settled]
    environment = {FOLLOW: str(os.getpid()), runtime.WORKERS: str(count * runtime.current.workers)}
    passed_on = [each for each in STOPPING if each in ALWAYS or signal.getsignal(each) == signal.SIG_DFL]
    assert isinstance(config.parallel, FsdpConfig), "no other starts processes"
    grace = min(GRACE, config.parallel.timeout_s)  # by then those that are left have noticed
    status = Job(command, count, environment, path, grace).run(passed_on)
    if status:
        sys.exit(status)
    return next(
        (row["eval/accuracy"] for row in reversed(read_rows(path / "metrics.jsonl")) if "eval/accuracy" in row), None
    )
