"""`iwopd diagnose`: where in a response student and teacher disagree, and what that means for the weighting."""

from contextlib import ExitStack
from dataclasses import replace

from iwopd.config import Config
from iwopd.config.stored import stored
from iwopd.diagnose.subjects import subjects
from iwopd.errors import ConfigError
from iwopd.machine.memory_watch import MemoryWatch
from iwopd.preflight.graders import check_graders
from iwopd.preflight.packages import check_packages
from iwopd.preflight.paths import check_path, scorer_sections
from iwopd.preflight.problems import benchmark_rows, teacher_templates
from iwopd.runs.console import Display
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import Interrupts


def run(config: Config) -> None:
    """Diagnose the student, or every kept student of `diagnose.run`.

    Leaves diagnose.json, report.html and figures/ in the run folder.

    Raises:
        IwopdError: bad input; raised before anything heavy loads where it can be.
    """
    assert config.run.dir is not None, "launch settles it"
    check_packages(config, "diagnose")
    folder = RunFolder(config.run.dir, stored(config, "diagnose"), resume=config.run.resume)
    folder.check()
    name = _benchmark_name(config)
    check_path("student.path", config.student.path)
    check_path("teacher.path", str(scorer_sections(config)["teacher"].path))
    students, note = subjects(config)
    chosen = replace(config.eval, benchmarks={name: config.eval.benchmarks[name]})
    check_graders(chosen)
    template = teacher_templates(config).get(None)
    rows = benchmark_rows(chosen, answers=config.diagnose.continuations > 0, template=template)
    from iwopd.diagnose.work import Work  # torch and matplotlib take 6 s; errors so far came at once

    with Interrupts(), Display() as display, ExitStack() as stack:
        if note:
            display.line(note)
        stack.enter_context(MemoryWatch())
        work = Work(config, folder, display, stack, {name: rows[name][: config.diagnose.prompts]})
        found = [work.diagnose(subject) for subject in students]
        work.write(found, [note] if note else [])


def _benchmark_name(config: Config) -> str:
    wanted, there = config.diagnose.benchmark, config.eval.benchmarks
    if not there:
        raise ConfigError("eval.benchmarks={}: no prompts to diagnose on; choose some, e.g. benchmark=[toy]")
    if wanted is not None and wanted not in there:
        raise ConfigError(f"diagnose.benchmark={wanted}: no such benchmark; choose one of {', '.join(there)}")
    name = wanted or next(iter(there))
    if config.diagnose.continuations and there[name].answer_column is None:
        raise ConfigError(
            f"eval.benchmarks.{name}.answer_column=null: continuation accuracy needs answers; name their column, or "
            "leave it out with diagnose.continuations=0"
        )
    return name
