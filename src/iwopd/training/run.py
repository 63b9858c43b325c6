"""A training run around the loop: evaluations and checkpoints between steps, stops, what is logged and said."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iwopd.config import Config
from iwopd.errors import EngineError, NonFiniteError
from iwopd.evaluation.evaluate import Evaluation, evaluate, evaluation_metrics
from iwopd.machine.memory_watch import MemoryWatch
from iwopd.parallel import world
from iwopd.rollout.horizon import running_mean_length
from iwopd.runs.card import write_card
from iwopd.runs.console import Display, evaluation_line, stages_line, step_line
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import Collapsed, ForcedStop, Interrupts, Stopped
from iwopd.runs.tracking import NoTracker, Tracker
from iwopd.training.loop import Loop
from iwopd.training.pace import Pace
from iwopd.training.report import FILE, refresh
from iwopd.training.samples import sample_rows
from iwopd.training.schedule import Schedule
from iwopd.training.stages import Stages
from iwopd.training.state import Components, State

log = logging.getLogger(__name__)


class TrainingRun:
    """Steps, evaluations and checkpoints as the schedule has them; nothing of a whole step is ever lost."""

    def __init__(
        self,
        config: Config,
        components: Components,
        folder: RunFolder,
        tracker: Tracker | NoTracker,
        display: Display,
        interrupts: Interrupts,
        state: State,
        memory: MemoryWatch,
    ):
        self.config = config
        self.components = components
        self.folder = folder
        self.tracker = tracker
        self.display = display
        self.interrupts = interrupts
        self.state = state
        self.saved = state.step if state.log_offsets else -1
        self.logged = state.step
        self.schedule = Schedule.of(config)
        self.stages = Stages(display, memory, interrupts.agree)
        self.pace = Pace()
        self.loop = Loop(config, components, self.schedule, state, self.stages, interrupts)

    def train(self) -> float | None:
        """Until the schedule ends; the last accuracy, None without a benchmark."""
        state, schedule = self.state, self.schedule
        with self._saved_when_stopped():
            self._first_sync()
            while True:
                self.display.run(*schedule.extent(state), self._left())
                if schedule.evaluates(state) and state.evaluated < state.step:
                    with self.pace("evaluations"):
                        self.evaluate()
                if schedule.saves(state):
                    with self.pace("checkpoints"):
                        self.save()
                if schedule.ended(state):
                    break
                with self._recorded(), self.pace("steps"):
                    self.loop.step()
                self._heed()
            self._export()
            self._report()
        return state.accuracy

    def _left(self) -> float | None:
        """Seconds until the run ends; None before this session's first step."""
        return self.pace.left(self.schedule.remaining(self.state))

    def _report(self) -> None:
        """report.html, as the run stands now."""
        if world().leader:
            refresh(self.folder.path, self.folder.config)

    def _heed(self) -> None:
        """An alarm of the step that was taken.

        Raises:
            Collapsed: it is to be stopped for.
        """
        found, what = self.loop.collapse, self.config.run.on_collapse
        if found is None or what == "ignore":
            return
        log.warning("%s: %s", self.schedule.said(self.state), found)
        if what == "stop" and not self.schedule.ended(self.state):
            raise Collapsed

    # ------------------------------------------------------------------------------------------ around a step

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """A step; once the weights have moved its metrics are logged, whatever happens then."""
        before, loop = self.state.step, self.loop
        self.stages.begin()
        self.stages.step, loop.metrics, loop.positions = before + 1, {}, None
        try:
            yield
        except NonFiniteError as error:
            kept = self.folder.saved()
            stays = f"{kept[-1].name} stays" if kept else "no checkpoint was due before"
            raise NonFiniteError(f"step {before + 1}: {error}; {stays}") from error
        finally:
            self._log_step()

    def _log_step(self) -> None:
        """The metrics of the last step, unless they are logged: a checkpoint must not be ahead of metrics.jsonl."""
        with self.interrupts.deferred():
            if self.logged < self.state.step:
                metrics = self.loop.metrics | self.stages.measured
                if self.state.step == 1:
                    metrics["data/dropped"] = self.components.dropped
                self.tracker.log(self.state.step, metrics)
                if self.loop.positions is not None:
                    self.tracker.positions(self.state.step, self.loop.positions)
                self.logged = self.state.step
                self.display.line(step_line(self.schedule.said(self.state), metrics, self._left()))
                self.display.fact("stages", stages_line(self.state.step, metrics))

    @contextmanager
    def _saved_when_stopped(self) -> Iterator[None]:
        """Asked to stop, or left by an engine: the last whole step is saved, and how to resume is said.

        Raises:
            SystemExit: with the status of the signal, or of an alarm.
            EngineError: with what was saved.
        """
        try:
            yield
        except ForcedStop:
            raise
        except Stopped as stop:
            with self.interrupts.finishing():
                self.save()
                self._report()
                by = " by run.on_collapse=stop" if isinstance(stop, Collapsed) else ""
                self.display.line(
                    f"stopped{by} after {self.schedule.said(self.state)}, saved; resume with: "
                    f"iwopd train … run.dir={self.folder.path} run.resume=true"
                )
            sys.exit(stop.status)
        except EngineError as error:
            if self.state.step == 0:
                raise
            self.save()
            raise EngineError(f"{error}; step {self.state.step} is saved, resume with run.resume=true") from error

    def _first_sync(self) -> None:
        """The engine was made from the student's files; a resumed student is further, one with adapters is another."""
        self.stages.begin()
        self.loop.sync(self.components.stream.batch(self.state.step))
        found = self.loop.metrics
        if found:
            mean, largest = found["sync/parity_mean_gap"], found["sync/parity_max_gap"]
            self.display.line(f"engine and trainer agree: mean gap {mean:.2g}, largest {largest:.2g} nats per token")

    # ------------------------------------------------------------------------------------------ between steps

    def evaluate(self) -> None:
        """Measure the student on every benchmark, and write a few of its responses with their weights."""
        parts, ev, state, found = self.components, self.config.eval, self.state, list[Evaluation]()
        self.stages.begin()
        for benchmark in parts.benchmarks:
            with self.stages("eval", f"evaluating on {benchmark.name}") as advance:
                found.append(
                    evaluate(
                        parts.engine,
                        benchmark,
                        parts.eval_sampling,
                        k=ev.k,
                        greedy=ev.greedy,
                        seed=self.config.seed,
                        decode=self._decode,
                        progress=advance,
                    )
                )
        metrics = evaluation_metrics(found)
        with self.interrupts.deferred():
            self.tracker.log(state.step, metrics | self.stages.measured)
            self.tracker.samples(state.step, self._samples(found))
            state.evaluated, state.accuracy = state.step, metrics["eval/accuracy"]
            graded = [item.rollout for evaluation in found for item in evaluation.graded]
            if self.schedule.evaluates_regularly(state):
                state.mean_response_length = running_mean_length(state.mean_response_length, graded)
            if state.step == 0:
                state.first_accuracy = state.accuracy
        for evaluation in found:
            said = f"after step {state.step}, {evaluation_line(evaluation.benchmark, evaluation.metrics)}"
            self.display.line(said)
            self.display.fact(f"evaluation on {evaluation.benchmark}", said)
        if not self.schedule.ended(state):
            self._report()

    def _decode(self, ids: Sequence[int]) -> str:
        return self.components.tokenizer.decode(ids, skip_special_tokens=True)

    def _samples(self, found: Sequence[Evaluation]) -> list[dict[str, Any]]:
        """The first responses of an evaluation, token by token with log-probs, advantages and weights."""
        parts, config, rows = self.components, self.config, list[dict[str, Any]]()
        for evaluation in found:
            made = sample_rows(
                evaluation.graded[:: config.eval.n or config.eval.k][: config.run.samples],
                parts.teacher,
                parts.student,
                parts.objective,
                progress=self.schedule.progress(self.state),
                tokenizer=parts.tokenizer,
                base=parts.base,
            )
            rows += [{"benchmark": evaluation.benchmark, **row} for row in made]
        return rows

    def save(self) -> None:
        """A checkpoint of this step, unless there is one."""
        state, student = self.state, self.components.student
        if self.saved >= state.step:
            return
        self._log_step()
        self._settle()

        def write(folder: Path) -> None:
            student.save(folder, self.components.tokenizer)
            self.components.teacher.save(folder)
            state.micro_batch_tokens = student.micro_batch_tokens
            world().alone(lambda: write_state(folder))

        def write_state(folder: Path) -> None:
            state.log_offsets = self.tracker.state
            state.save(folder / "trainer.json")
            self.loop.rollouts.save(folder, state)

        with self.interrupts.deferred():
            self.folder.save_checkpoint(state.step, write, self.config.run.keep)
            self.saved = state.step

    def _settle(self) -> None:
        """The next step's rollouts are part of a checkpoint: the student that is writing them will be gone."""
        rollouts = self.loop.rollouts
        if rollouts.under_way(self.state):
            self.display.line("the next step's rollouts are under way and waited for; Ctrl-C twice more ends at once")
            with self.display.stage(f"waiting for the rollouts of step {self.state.step + 1}") as advance:
                rollouts.settle_if_possible(self.state, advance)

    def _export(self) -> None:
        state = self.state
        if self.folder.final_step != state.step:  # a finished run that is resumed has it already, unless lengthened
            with self.interrupts.deferred():
                self.folder.save_final(self._write_final, state.step)
        if state.accuracy is None or state.first_accuracy is None:
            came = f"not evaluated, for there is no benchmark; {state.step} steps"
        else:
            came = f"accuracy {state.first_accuracy:.3f} before, {state.accuracy:.3f} after {state.step} steps"
        left = f"the student is in {self.folder.final}, the report in {self.folder.path / FILE}"
        self.display.line(f"{self.config.run.name}: {came}; {left}")

    def _write_final(self, folder: Path) -> None:
        tokenizer, state = self.components.tokenizer, self.state
        self.components.student.export(folder, tokenizer)
        chat = bool(tokenizer.chat_template)
        world().alone(
            lambda: write_card(folder, self.folder.path, self.config, steps=state.step, tokens=state.tokens, chat=chat)
        )
