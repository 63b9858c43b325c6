"""`iwopd train`."""

import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

from iwopd.config import Config
from iwopd.config.stored import stored
from iwopd.parallel import processes, world
from iwopd.preflight.checks import check_inputs
from iwopd.preflight.processes import check_processes
from iwopd.runs import naming
from iwopd.runs.console import Display
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import ForcedStop, Interrupts, Stopped
from iwopd.training.resume import another_end


def run(config: Config) -> float | None:
    """Train, and return the last accuracy (for Hydra's sweepers); None without a benchmark.

    Raises:
        IwopdError: bad input; nothing was written unless training had begun.
    """
    several = processes() > 1
    folder = None if several else checked_folder(config)  # of several processes, it is the leader's to look at
    if several:
        check_processes(config)
    checked = check_inputs(config)

    from iwopd.assembly.training import opened_world, training_run  # torch takes 5 s; errors so far came at once

    with opened_world(config) if several else nullcontext():
        if several:
            naming.agree(config.run)
        with Interrupts() as interrupts, Display(shown=world().leader) as display, ExitStack() as stack:
            try:
                held = folder or checked_folder(config)
                return training_run(config, checked, held, display, interrupts, stack).train()
            except ForcedStop as stop:
                display.line("stopped at once; the last checkpoint stays: resume with run.resume=true")
                sys.exit(stop.status)
            except Stopped as stop:
                display.line("stopped before training began")
                sys.exit(stop.status)


def checked_folder(config: Config) -> RunFolder:
    """The run's folder, of which it is known that the run can go there."""
    assert config.run.dir is not None, "launch settles it"
    plain, path = stored(config, "train"), Path(config.run.dir)
    folder = RunFolder(path, plain, resume=config.run.resume, may_differ=another_end(config, path))
    folder.check()
    return folder
