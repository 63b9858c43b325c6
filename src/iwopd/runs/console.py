"""What a person sees of a run: a live bar on a terminal, plain lines anywhere else, and the same lines in train.log."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from iwopd.redact import clean
from iwopd.runs.meter import Meter, duration

PLAIN_FIRST, PLAIN_LAST = 10.0, 60.0  # seconds before the first plain line of a stage, and between its later ones


class PlainConsole(Console):
    """A console where a text is shown as it is, and clean: a path or a model's answer may well hold ``[red]``,
    ``[/x]``, ``:100:`` or commands for the terminal."""

    def __init__(self, **options: Any):  # noqa: ANN401  rich's
        super().__init__(**{**options, "highlight": False, "markup": False, "emoji": False})

    def print(self, *objects: object, **options: Any) -> None:  # noqa: ANN401  rich's
        """As every console does."""
        super().print(*(clean(each) if isinstance(each, str) else each for each in objects), **options)

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401  rich's
        """Texts within tables."""
        return super().render_str(clean(text), **options)


def plain_console(width: int | None = None) -> Console:
    """Standard output; see `PlainConsole`."""
    return PlainConsole(width=width)


class Display:
    """Lines and progress bars; a context manager.

    Args:
        console: where to; standard output by default.
        shown: false for a process that leaves it to another to say what both do.
    """

    def __init__(self, console: Console | None = None, *, shown: bool = True):
        self.console = console or (plain_console() if shown else PlainConsole(file=StringIO(), quiet=True))
        self.live = self.console.is_terminal
        self._file: Path | None = None
        self.screen = _Screen(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            _Said(table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._handler = _Lines(self)

    def __enter__(self) -> "Display":
        logging.getLogger("iwopd").addHandler(self._handler)
        logging.getLogger("iwopd").setLevel(logging.INFO)
        if self.live:
            self.screen.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.screen.stop()
        logging.getLogger("iwopd").removeHandler(self._handler)

    def log_to(self, file: Path) -> None:
        """From now on, also append every line to `file`."""
        self._file = file

    def line(self, text: str) -> None:
        """One line."""
        text = clean(text).replace("\n", r"\n")
        # A plain line stays one line however narrow the console thinks it is.
        self.console.print(Text(text), soft_wrap=True)
        if self._file is not None:
            try:
                with self._file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                    stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")
            except OSError:  # a full disk must not end the run here; the checkpoint will say so
                self._file = None

    def table(self, table: Table) -> None:
        """A table."""
        self.console.print(table, markup=False)

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[..., None]]:
        """A bar for work within a step; yields ``advance(done, total)``, an `iwopd.rollout.base.Progress`."""
        meter, ended, title = Meter(), threading.Event(), clean(title).replace("\n", r"\n")
        if self.live:
            task = self.screen.add_task(title, total=None, said=meter)

            def advance(done: int, total: int, tokens: int = 0, most: int = 0) -> None:
                meter(done, total, tokens, most)
                self.screen.update(task, completed=tokens if most else done, total=meter.expected)

            try:
                yield advance
            finally:
                self.screen.remove_task(task)
            return
        # A thread of its own: there may be no progress for minutes, while one large batch is computed.
        teller = threading.Thread(target=self._tell, args=(title, meter, ended), name="progress", daemon=True)
        teller.start()
        try:
            yield meter
        finally:
            ended.set()
            teller.join()

    def _tell(self, title: str, meter: Meter, ended: threading.Event) -> None:
        """A plain line now and then, more seldom as the stage gets long."""
        began = time.monotonic()
        while not ended.wait(min(PLAIN_LAST, max(PLAIN_FIRST, (time.monotonic() - began) / 4))):
            self.line(f"{title}: {meter}")

    def run(self, done: int, total: int, unit: str, left: float | None = None) -> None:
        """The bar of the whole run, counted in steps or tokens.

        Args:
            left: seconds until it ends; None where that is not known yet.
        """
        if self.live:
            if "run" not in self._tasks:
                self._tasks["run"] = self.screen.add_task("whole run", total=total, said="")
            said = f"{min(done, total):,} of {total:,} {unit}" + (
                "" if left is None else f", about {duration(left)} left"
            )
            self.screen.update(self._tasks["run"], completed=min(done, total), total=total, said=said)

    def fact(self, name: str, text: str) -> None:
        """A line that stays on a terminal's screen below the bars, in place of the last one of that name."""
        self.screen.facts[name] = clean(text).replace("\n", r"\n")


def seconds_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """What each stage of a step took, by its name."""
    found = re.compile(r"time/(\w+)_s")
    return {match[1]: value for key, value in metrics.items() if (match := found.fullmatch(key))}


def step_line(position: str, metrics: Mapping[str, float], left: float | None = None) -> str:
    """A training step in one line, which begins with how far the run is after it.

    Args:
        left: see `Display.run`.
    """
    seconds = sum(seconds_of(metrics).values())
    rate = f", {metrics['tokens/generated'] / seconds:,.0f} tokens/s" if seconds else ""
    return (
        f"{position}  loss {metrics['train/loss']:.4f}  reverse KL {metrics['train/reverse_kl']:.3f}  "
        f"|A| {metrics['train/abs_advantage_mean']:.3f}  weight {metrics['train/weight_mean']:.2f}  "
        f"length {metrics['train/response_length']:.1f}  {seconds:.1f} s{rate}"
        + ("" if left is None else f"  about {duration(left)} left")
    )


def stages_line(step: int, metrics: Mapping[str, float]) -> str:
    """What the stages of the last step took, in one line."""
    seconds = seconds_of(metrics)
    stages = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items() if value >= 0.05)
    rate = metrics["tokens/generated"] / max(sum(seconds.values()), 1e-9)
    return f"step {step}: {rate:,.0f} tokens/s" + (f"; {stages}" if stages else "")


def evaluation_line(name: str, metrics: Mapping[str, float]) -> str:
    """An evaluation in one line."""
    given_up = f"  gave up grading {metrics['grading_timeouts']:.0f}" if metrics["grading_timeouts"] else ""
    greedy = f"  greedy {metrics['greedy_accuracy']:.3f}" if "greedy_accuracy" in metrics else ""
    return (
        f"{name}: mean@{metrics['samples']:.0f} {metrics['accuracy']:.3f} "
        f"[{metrics['accuracy_low']:.3f}, {metrics['accuracy_high']:.3f}]  "
        f"pass@{metrics['k']:.0f} {metrics['pass_at_k']:.3f}{greedy}  length {metrics['response_length']:.1f}  "
        f"cut {metrics['truncated']:.1%}{given_up}"
    )


class _Screen(Progress):
    """Bars, and below them the facts: what a person wants to see without scrolling."""

    def __init__(self, *columns: ProgressColumn, **options: Any):  # noqa: ANN401  rich's
        self.facts: dict[str, str] = {}
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterator[RenderableType]:
        """As every progress display's."""
        yield from super().get_renderables()
        yield from (Text(text, no_wrap=True, overflow="ellipsis") for text in list(self.facts.values()))


class _Said(ProgressColumn):
    """Beside a bar: what its meter says."""

    def render(self, task: Task) -> Text:
        said = task.fields["said"]
        return Text(said.short() if isinstance(said, Meter) else said)


class _Lines(logging.Handler):
    """Log records as lines above the bar."""

    def __init__(self, display: Display):
        super().__init__(logging.INFO)
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.display.line(prefix + record.getMessage())
