"""A study carried out: its runs as processes, with budgets where arms are matched by tokens, and its report."""

from collections.abc import Sequence
from typing import Any

from iwopd.ablate import cluster
from iwopd.ablate.arms import Arm, Run, with_budget
from iwopd.ablate.curves import read_curve
from iwopd.ablate.study_table import StudyTable
from iwopd.ablate.workers import Outcome, Workers
from iwopd.config import Config
from iwopd.machine import host
from iwopd.preflight.paths import model_folders
from iwopd.runs.console import Display
from iwopd.runs.folder import RunFolder


def prepare(runs: Sequence[Run]) -> None:
    """Have the toy models made, once and with a progress bar, before the runs need them."""
    wanted = {}
    for one in runs:
        for key, path in (("student.path", one.config.student.path), ("teacher.path", one.config.teacher.path)):
            wanted[f"{key}={path}"] = path
    with Display() as display:
        model_folders(wanted, display.stage)


def check_begun(runs: Sequence[Run]) -> None:
    """Runs that have begun, the finished ones too, must have read what those still to come will read.

    Raises:
        RunFolderError: a run read something else; says what.
    """
    from iwopd.assembly.run_inputs import keep_inputs, read_inputs  # torch takes 5 s, and new studies do without

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


def carry_out(config: Config, runs: Sequence[Run], board: StudyTable, flags: Sequence[str]) -> None:
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


def carry_out_batch(config: Config, runs: Sequence[Run], board: StudyTable, flags: Sequence[str]) -> None:
    """The runs that are not done: through the Hydra launcher that was chosen, or in processes of this machine."""
    waiting = [one for one in runs if not one.done and one.name not in board.failed]
    if not waiting:
        return
    if cluster.launcher_chosen():
        outcomes = cluster.launch([(one.overrides, one.folder) for one in waiting], flags)
        for one, outcome in zip(waiting, outcomes, strict=True):
            board.ended(one, outcome)
        return
    most = max(1, host.cores() // config.parallel.started) if _on_cpu(config.run.device) else 1
    count = config.ablate.workers or most
    jobs = [((*flags, *one.overrides), one.folder) for one in waiting]
    Workers(min(count, len(jobs))).run(jobs, lambda index, outcome: board.ended(waiting[index], outcome))


def _on_cpu(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not host.has_gpu())


def write(config: Config, arms: Sequence[Arm], runs: Sequence[Run], board: StudyTable, folder: RunFolder) -> None:
    """study.json, study.md, report.html and figures/, from what the runs left."""
    from iwopd.ablate.report import report_study  # torch and matplotlib take 6 s, and nothing before needs them

    for text in report_study(config, arms, runs, board.failed, folder.path):
        board.line(text)
