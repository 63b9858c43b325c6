"""What a person sees of a study at work: a table that fills in on a terminal, a line for each run anywhere else."""

import threading
from collections.abc import Sequence
from statistics import fmean, stdev

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from iwopd.ablate.arms import Run
from iwopd.ablate.curves import Axis, read_curve, study_figures
from iwopd.ablate.workers import Outcome
from iwopd.redact import clean
from iwopd.runs.console import plain_console

REFRESH = 1.0  # seconds between looks at the runs' files


class StudyTable:
    """The state of all runs, read from their folders; a context manager.

    Args:
        runs: of the study.
        baseline: the arm that the others are compared with.
        early: step of the early figure.
        axis: what the arms have equal.
        console: where to; standard output by default.
    """

    def __init__(self, runs: Sequence[Run], baseline: str, early: int, axis: Axis, console: Console | None = None):
        self.runs = runs
        self.baseline = baseline
        self.early = early
        self.axis: Axis = axis
        self.console = console or plain_console()
        self.failed: dict[str, str] = {}
        self._finished = {run.name: read_curve(run.folder) for run in runs if run.done}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> "StudyTable":
        if self._finished:
            self.line(f"{len(self._finished)} of {len(self.runs)} runs are done already")
        if self._live is not None:
            self._live.start()
            self._live.update(self.table(), refresh=True)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()
        if self._live is not None:
            self._live.stop()

    def line(self, text: str) -> None:
        """One line, above the table where there is one."""
        self.console.print(Text(clean(text).replace("\n", r"\n")), soft_wrap=True)

    def ended(self, run: Run, outcome: Outcome) -> None:
        """A run's process has ended; reports its failure at once."""
        if outcome.status and run.name not in self.failed:
            self.failed[run.name] = outcome.reason or f"exit status {outcome.status}"
            self.line(f"{run.name}: failed: {self.failed[run.name]}")
        self.look()

    def _watch(self) -> None:
        while not self._stop.wait(REFRESH):
            self.look()

    def look(self) -> None:
        """Read the runs' files: say which are new among the done, and fill in the table."""
        with self._lock:
            for run in self.runs:
                if run.name not in self._finished and run.done:
                    curve = self._finished[run.name] = read_curve(run.folder)
                    self.line(
                        f"{run.name}: accuracy {curve.accuracies[0]:.3f} before, {curve.accuracies[-1]:.3f} after "
                        f"{curve.steps} steps ({len(self._finished)} of {len(self.runs)} runs)"
                    )
            if self._live is not None:
                self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """Arms by figures, mean ± sd over the seeds that are done."""
        table = Table("arm", "runs", f"step {self.early}", "best", "final", "area", "now", box=None, pad_edge=False)
        curves = {(run.arm, run.seed): self._finished[run.name] for run in self.runs if run.name in self._finished}
        figures = study_figures(curves, self.baseline, self.early, self.axis)
        for arm in dict.fromkeys(run.arm for run in self.runs):
            runs = [run for run in self.runs if run.arm == arm]
            found = [figures[arm, run.seed] for run in runs if run.name in self._finished]
            cells = [mean_sd([figure[name] for figure in found]) for name in ("early", "best", "final", "auc")]
            table.add_row(arm, f"{len(found)}/{len(runs)}", *cells, self._now(runs))
        return table

    def _now(self, runs: Sequence[Run]) -> str:
        said = []
        for run in runs:
            if run.name in self.failed:
                said.append(f"seed {run.seed} failed")
            elif run.name not in self._finished:
                curve = read_curve(run.folder)
                if curve.points:
                    said.append(f"seed {run.seed}: step {curve.steps}, {curve.accuracies[-1]:.3f}")
        return "; ".join(said)


def mean_sd(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± sample standard deviation, as far as there are values."""
    if not values:
        return "–"
    mean = f"{fmean(values):,.{digits}f}"
    return f"{mean} ± {stdev(values):,.{digits}f}" if len(values) > 1 else mean
