"""`iwopd eval`: accuracy of one model, with no training."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from rich.table import Table

from iwopd.config import Config
from iwopd.config.stored import stored
from iwopd.data import Row
from iwopd.evaluation.evaluate import Evaluation, evaluation_metrics
from iwopd.machine.memory_watch import MemoryWatch
from iwopd.preflight.graders import check_graders
from iwopd.preflight.packages import check_packages
from iwopd.preflight.paths import check_path
from iwopd.preflight.problems import benchmark_rows
from iwopd.runs.console import Display
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import Interrupts, Stopped
from iwopd.runs.tracking import Tracker


def run(config: Config) -> float:
    """Evaluate `eval.model` on every benchmark; the mean accuracy.

    Leaves config.yaml, metrics.jsonl, and eval/<benchmark>.json and .jsonl.zst (see `iwopd.evaluation.results`) in the
    run folder.
    """
    assert config.run.dir is not None, "launch settles it"
    assert config.eval.model is not None, "launch checks it"
    folder = RunFolder(config.run.dir, stored(config, "eval"), resume=config.run.resume)
    folder.check()
    check_packages(config, "eval")
    check_path("eval.model", config.eval.model)
    check_graders(config.eval)
    rows = benchmark_rows(config.eval)
    with Interrupts(), Display() as display:
        try:
            return _evaluate(config, folder, rows, display)
        except Stopped as stop:
            if (folder.path / "eval").exists():
                display.line(f"stopped; resume with: iwopd eval … run.dir={folder.path} run.resume=true")
            sys.exit(stop.status)


def _evaluate(config: Config, folder: RunFolder, rows: dict[str, list[Row]], display: Display) -> float:
    from iwopd.assembly.evaluator import Evaluator  # torch takes 5 s; errors so far came at once

    with ExitStack() as stack:
        memory = stack.enter_context(MemoryWatch())
        evaluator = Evaluator(config, folder, rows, display, stack)
        found = [evaluator.evaluate(benchmark) for benchmark in evaluator.benchmarks]
        metrics = evaluation_metrics(found) | {"memory/eval_mib": memory.lap("eval")}
        Tracker(folder.path, check=folder.lock.check).log(0, metrics)
    display.table(summary(found))
    display.line(f"results are in {folder.path / 'eval'}")
    return metrics["eval/accuracy"]


def summary(found: Sequence[Evaluation]) -> Table:
    """A column for each benchmark; lengths in tokens."""
    table = Table("", *(evaluation.benchmark for evaluation in found))
    for name, show in LINES.items():
        table.add_row(name, *(show(evaluation.metrics) for evaluation in found))
    return table


LINES: dict[str, Callable[[dict[str, float]], str]] = {
    "problems × samples": lambda metrics: f"{metrics['problems']:.0f} × {metrics['samples']:.0f}",
    "mean@n": lambda metrics: f"{metrics['accuracy']:.3f}",
    "95 % interval": lambda metrics: f"{metrics['accuracy_low']:.3f}–{metrics['accuracy_high']:.3f}",
    "pass@k": lambda metrics: f"{metrics['pass_at_k']:.3f} (k = {metrics['k']:.0f})",
    "greedy": lambda metrics: f"{metrics['greedy_accuracy']:.3f}" if "greedy_accuracy" in metrics else "",
    "length, mean": lambda metrics: f"{metrics['response_length']:.0f}",
    "median, p90, max": lambda metrics: ", ".join(
        f"{metrics[f'response_length_{name}']:.0f}" for name in ("median", "p90", "max")
    ),
    "cut": lambda metrics: f"{metrics['truncated']:.1%}",
    "grading given up": lambda metrics: f"{metrics['grading_timeouts']:.0f}",
}
