"""`iwopd ablate`: the same training with several weightings and seeds, and which differences are more than noise."""

import sys
from collections.abc import Sequence
from typing import Any

from iwopd.ablate.arms import Arm, CommandLine, Run, study_arms, study_runs, study_seeds
from iwopd.ablate.students import study_students
from iwopd.ablate.study import budgeted, carry_out, check_begun, prepare, write
from iwopd.ablate.study_table import StudyTable
from iwopd.config import Config
from iwopd.config.stored import stored
from iwopd.errors import ConfigError, IwopdError
from iwopd.preflight.checks import check_inputs
from iwopd.preflight.packages import check_packages
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import Interrupts, Stopped


def run(config: Config, line: CommandLine) -> None:
    """Compare the arms; leaves study.json, study.md, report.html, figures/ and runs/ in the study's folder.

    Exit status 1 if a run failed; 130 after Ctrl-C, with all processes gone and their checkpoints saved.

    Raises:
        IwopdError: bad input in any arm; nothing was written.
    """
    check_packages(config, "ablate")
    if config.run.tokens is not None and config.ablate.match == "steps":
        raise ConfigError(
            f"run.tokens={config.run.tokens}: ablate.match=steps gives all arms equal steps; add ablate.match=tokens "
            "to give them this budget"
        )
    arms, seeds = study_arms(config, line.overrides), study_seeds(config, line.overrides)
    students = study_students(config, arms, seeds, line.overrides)
    runs = study_runs(config, arms, seeds, line, students)
    folder = study_folder(config)
    check(config, arms, runs, folder)

    with Interrupts(), folder:
        folder.record()
        try:
            prepare(runs)
            check_begun(runs)
            axis: Any = config.ablate.match  # its choices are checked by the schema
            with StudyTable(runs, config.ablate.baseline, config.ablate.early, axis) as board:
                carry_out(config, runs, board, line.flags)
        except Stopped as stop:
            print(f"stopped; resume unfinished runs from their checkpoints with: iwopd ablate … run.dir={folder.path}")
            sys.exit(stop.status)
        write(config, arms, runs, board, folder)
    if board.failed:
        print(f"{len(board.failed)} of {len(runs)} runs failed; run the same again to retry them", file=sys.stderr)
        sys.exit(1)


def study_folder(config: Config) -> RunFolder:
    """The folder of a study; one that holds the same study is resumed, with more arms or seeds if there are any."""
    plain = stored(config, "ablate")
    for decided_by_arms in ("weighting", "seed"):
        del plain[decided_by_arms]
    assert config.run.dir is not None, "launch settles it"
    return RunFolder(config.run.dir, plain, resume=True)


def check(config: Config, arms: Sequence[Arm], runs: Sequence[Run], folder: RunFolder) -> None:
    """Everything that can be refused without torch: the study's folder, each run's, and what each arm reads."""
    folder.check()
    for one in budgeted(config, runs):
        RunFolder(one.folder, stored(one.config, "train"), resume=True).check()
    seen: list[Any] = []
    by_name = {arm.name: arm for arm in arms}
    for each in runs:
        one, arm = each.config, by_name[each.arm]
        if not one.eval.benchmarks:
            raise ConfigError(
                f"{f'ablate.arms={arm.name}: ' if config.eval.benchmarks else ''}benchmark=[]: a study compares "
                "accuracies, and without a benchmark there are none; choose one, e.g. benchmark=[toy]"
            )
        inputs = (one.student, one.teacher, one.data, one.eval, one.tracking, one.parallel)
        if inputs in seen:
            continue
        seen.append(inputs)
        try:
            check_inputs(one)
        except IwopdError as error:
            if not any(str(error).startswith(override.lstrip("+").partition("=")[0]) for override in arm.overrides):
                raise  # all arms have it in common
            raise ConfigError(*(f"ablate.arms={arm.name}: {line}" for line in str(error).splitlines())) from None
