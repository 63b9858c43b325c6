"""`iwopd ablate`: the same training with several weightings and seeds, and which differences are more than noise."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from iwopd import assembly
from iwopd.ablate import cluster
from iwopd.ablate.arms import Arm, CommandLine, Run, study_arms, study_runs, study_seeds, with_budget
from iwopd.ablate.board import Board
from iwopd.ablate.curves import read_curve
from iwopd.ablate.workers import Outcome, Workers
from iwopd.assembly.run_inputs import keep_inputs, read_inputs
from iwopd.config import Config
from iwopd.config.stored import stored
from iwopd.errors import ConfigError, IwopdError
from iwopd.machine import host
from iwopd.runs.console import Display
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import Interrupts, Stopped


def run(config: Config, line: CommandLine) -> None:
    """Compare the arms; leaves study.json, study.md, report.html, figures/ and runs/ in the study's folder.

    Exit status 1 if a run failed; 130 after Ctrl-C, with all processes gone and their checkpoints saved.

    Raises:
        IwopdError: bad input in any arm; nothing was written.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("ablate: matplotlib draws its figures and is not installed; pip install 'iwopd[report]'")
    if config.run.tokens is not None and config.ablate.match == "steps":
        raise ConfigError(
            f"run.tokens={config.run.tokens}: ablate.match=steps gives all arms equal steps; add ablate.match=tokens "
            "to give them this budget"
        )
    arms, seeds = study_arms(config, line.overrides), study_seeds(config, line.overrides)
    runs = study_runs(config, arms, seeds, line)
    folder = study_folder(config)
    check(config, arms, runs, folder)

    with Interrupts(), folder:
        folder.record()
        try:
            prepare(runs)
            check_begun(runs)
            axis: Any = config.ablate.match  # its choices are checked by the schema
            with Board(runs, config.ablate.baseline, config.ablate.early, axis) as board:
                carry_out(config, runs, board, line.flags)
        except Stopped as stop:
            print(f"stopped; unfinished runs go on from their checkpoints with: iwopd ablate … run.dir={folder.path}")
            sys.exit(stop.status)
        write(config, arms, runs, board, folder)
    if board.failed:
        print(f"{len(board.failed)} of {len(runs)} runs failed; run the same again to try them anew", file=sys.stderr)
        sys.exit(1)


def study_folder(config: Config) -> RunFolder:
    """The folder of a study; one that holds the same study goes on, with more arms or seeds if there are any."""
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
    for arm in arms:
        one = next(one.config for one in runs if one.arm == arm.name)
        if not one.eval.benchmarks:
            raise ConfigError(
                f"{f'ablate.arms={arm.name}: ' if config.eval.benchmarks else ''}benchmark=[]: a study compares "
                "accuracies, and without a benchmark there are none; choose one, e.g. benchmark=[toy]"
            )
        inputs = (one.student, one.teacher, one.data, one.eval, one.tracking)
        if inputs in seen:
            continue
        seen.append(inputs)
        try:
            assembly.check_inputs(one)
        except IwopdError as error:
            if not any(str(error).startswith(override.lstrip("+").partition("=")[0]) for override in arm.overrides):
                raise  # all arms have it in common
            raise ConfigError(*(f"ablate.arms={arm.name}: {line}" for line in str(error).splitlines())) from None


def prepare(runs: Sequence[Run]) -> None:
    """Have the toy models made, once and in sight, before the runs ask for them."""
    wanted = {}
    for one in runs:
        for key, path in (("student.path", one.config.student.path), ("teacher.path", one.config.teacher.path)):
            wanted[f"{key}={path}"] = path
    with Display() as display:
        assembly.model_folders(wanted, display.stage)


def check_begun(runs: Sequence[Run]) -> None:
    """Runs that have begun, the finished ones too, must have read what those still to come will read.

    Raises:
        RunFolderError: a run read something else; says what.
    """
    known = dict[str, dict[str, Any]]()
    with Display() as display:
        for one in runs:
            folder = RunFolder(one.folder, {}, resume=True)
            if folder.saved_inputs() is None:
                continue
            config = one.config
            key = repr((config.student, config.teacher, config.teachers, config.base, config.data, config.eval))
            if key not in known:
                known[key] = read_inputs(config, display.stage)
            keep_inputs(folder, known[key])


def carry_out(config: Config, runs: Sequence[Run], board: Board, flags: Sequence[str]) -> None:
    """Every run that is not done; those with a budget to follow after the baseline that sets it."""
    baseline = [one for one in runs if one.arm == config.ablate.baseline]
    others = [one for one in runs if one.arm != config.ablate.baseline]
    if config.ablate.match == "steps" or config.run.tokens is not None:
        return carry_out_batch(config, budgeted(config, runs), board, flags)
    carry_out_batch(config, baseline, board, flags)
    known = budgeted(config, [*baseline, *others])
    for one in others:
        if not any(one.name == other.name for other in known):
            board.ended(one, Outcome(1, f"not begun, for {config.ablate.baseline} of this seed gave no token budget"))
    return carry_out_batch(config, known, board, flags)


def budgeted(config: Config, runs: Sequence[Run]) -> list[Run]:
    """The runs as they are carried out: with ablate.match=tokens, all get the budget of run.tokens. Without one, all
    but the baseline get its tokens as theirs, and those whose baseline is not done are left out."""
    if config.ablate.match == "steps":
        return list(runs)
    if config.run.tokens is not None:
        return [with_budget(one, config.run.tokens) for one in runs]
    budgets = {
        one.seed: int(read_curve(one.folder).cost["tokens_generated"])
        for one in runs
        if one.arm == config.ablate.baseline and one.done
    }
    known = [one for one in runs if one.arm == config.ablate.baseline or one.seed in budgets]
    return [one if one.arm == config.ablate.baseline else with_budget(one, budgets[one.seed]) for one in known]


def carry_out_batch(config: Config, runs: Sequence[Run], board: Board, flags: Sequence[str]) -> None:
    """The runs that are not done: through the Hydra launcher that was chosen, or in processes of this machine."""
    waiting = [one for one in runs if not one.done and one.name not in board.failed]
    if not waiting:
        return
    on_cpu = config.run.device == "cpu" or assembly.device(config.run.device).type == "cpu"
    if cluster.launcher_chosen():
        outcomes = cluster.launch([(one.overrides, one.folder) for one in waiting], flags)
        for one, outcome in zip(waiting, outcomes, strict=True):
            board.ended(one, outcome)
        return
    count = config.ablate.workers or (host.cores() if on_cpu else 1)
    jobs = [((*flags, *one.overrides), one.folder) for one in waiting]
    Workers(min(count, len(jobs))).run(jobs, lambda index, outcome: board.ended(waiting[index], outcome))


def write(config: Config, arms: Sequence[Arm], runs: Sequence[Run], board: Board, folder: RunFolder) -> None:
    """study.json, study.md, report.html and figures/, from what the runs left."""
    from iwopd.ablate.report import write_report
    from iwopd.ablate.results import study_results

    results = study_results(config, arms, runs, board.failed)
    for text in write_report(results, folder.path):
        board.line(text)
