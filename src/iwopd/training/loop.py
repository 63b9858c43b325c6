"""The training loop: it reads like the paper's algorithm, with evaluations and checkpoints between steps."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwopd.config import Config
from iwopd.errors import EngineError, NonFiniteError
from iwopd.machine.memory_watch import MemoryWatch
from iwopd.rollout.horizon import horizon_tokens, whole_length
from iwopd.runs.card import write_card
from iwopd.runs.console import Display, evaluation_line, step_line
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import ForcedStop, Interrupts, Stopped
from iwopd.runs.tracking import Tracker
from iwopd.seeding import derive_seed
from iwopd.training.components import Parts, State
from iwopd.training.metrics import Clock, evaluation_metrics, gpu_memory, sizes
from iwopd.training.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iwopd.evaluation.evaluate import Evaluation
    from iwopd.types import Prompt


class Trainer:
    """The loop."""

    def __init__(
        self,
        config: Config,
        parts: Parts,
        folder: RunFolder,
        tracker: Tracker,
        display: Display,
        interrupts: Interrupts,
        state: State,
    ):
        self.config = config
        self.parts = parts
        self.folder = folder
        self.tracker = tracker
        self.display = display
        self.interrupts = interrupts
        self.state = state
        self.saved = state.step if state.written else -1
        self.schedule = Schedule.of(config)
        parts.student.schedule = lambda update: self.schedule.learning_rate(state, update)
        self.memory = MemoryWatch()

    def train(self) -> float | None:
        """Steps, evaluations and checkpoints until the schedule ends; the last accuracy, None without a benchmark."""
        state, schedule = self.state, self.schedule
        try:
            self._first_sync()
            while True:
                self.display.run(*schedule.extent(state))
                if schedule.evaluates(state) and state.evaluated < state.step:
                    self.evaluate()
                if schedule.saves(state) and self.saved < state.step:
                    self.save()
                if schedule.ended(state):
                    break
                self._step_or_explain()
            self._export()
        except ForcedStop:
            raise
        except Stopped as stop:
            with self.interrupts.finishing():
                if self.saved < state.step:
                    self.save()
                self.display.line(
                    f"stopped after {schedule.said(state)}, saved; resume with: "
                    f"iwopd train … run.dir={self.folder.path} run.resume=true"
                )
            sys.exit(stop.status)
        except EngineError as error:  # the student is that of a whole step: nothing of it need be lost
            if state.step == 0:
                raise
            if self.saved < state.step:
                self.save()
            raise EngineError(f"{error}; step {state.step} is saved, go on with run.resume=true") from error
        return state.accuracy

    def _step_or_explain(self) -> None:
        try:
            self.step()
        except NonFiniteError as error:
            kept = self.folder.saved()
            stays = f"{kept[-1].name} stays" if kept else "no checkpoint was due before"
            raise NonFiniteError(f"step {self.state.step + 1}: {error}; {stays}") from error

    def step(self) -> None:
        """One step of on-policy distillation (arXiv 2606.22600)."""
        from iwopd.training.score import score
        from iwopd.training.update import update

        parts, config, step = self.parts, self.config, self.state.step
        progress, clock = self.schedule.progress(self.state), Clock(self.memory)
        prompts = parts.stream.batch(step)
        horizon = horizon_tokens(config.rollout, progress, self.state.whole_length)
        window = parts.weighting.window(progress)
        with self.display.stage(f"step {step + 1}: rollout") as advance:
            rollouts = parts.engine.generate(
                prompts,
                replace(parts.sampling, max_tokens=horizon),
                seed=config.seed,
                stream=step,
                progress=advance,
                finished=lambda rollout: parts.teacher.expect(rollout, window),
            )
            parts.engine.sleep()
        clock.lap("rollout")
        with self.display.stage(f"step {step + 1}: score") as advance:
            scored = score(
                parts.teacher,
                rollouts,
                window,
                student=parts.student if self._needs_student_logprobs else None,
                base=parts.base,
                hidden=parts.loss.over_vocabulary,
                progress=advance,
            )
        clock.lap("score")
        # From here to the end of the block the weights change: Ctrl-C waits for a whole step.
        with self.interrupts.deferred(), self.display.stage(f"step {step + 1}: update") as advance:
            learning_rate = parts.student.current_lr
            metrics = update(
                parts.student,
                scored,
                parts.weighting,
                parts.loss,
                seeds=[derive_seed(config.seed, step, item.prompt_id, item.sample) for item in rollouts],
                progress=progress,
                updates=config.optim.updates_per_batch,
                teacher_head=parts.teacher.head() if parts.loss.over_vocabulary else None,
                advance=advance,
            )
            clock.lap("update")
            parts.gaps.see(metrics["train/sampler_gap_mean"])
            metrics |= {
                "train/lr": learning_rate,
                "train/progress": progress,
                "train/epoch": (step + 1) / parts.stream.steps_per_epoch,
                "train/horizon": horizon,
                **sizes(scored),
                **gpu_memory(parts.student.device),
            }
            self.schedule.advance(self.state, int(metrics["tokens/generated"]))
            if step == 0:
                metrics["data/dropped"] = parts.dropped
            try:
                metrics |= self.sync(prompts, clock)
            finally:  # an engine that fails here does not undo the step
                metrics |= clock.seconds
                self.tracker.log(self.state.step, metrics)
        self.display.line(step_line(self.schedule.said(self.state), metrics))

    def sync(self, prompts: "Sequence[Prompt]", clock: Clock) -> dict[str, float]:
        """Give the engine the student's weights, and see that it has them; metrics of the comparison.

        Raises:
            EngineError: it does not take them, or answers as if it had not.
        """
        from iwopd.training.parity import check_parity

        parts, limits = self.parts, self.parts.parity
        parts.engine.sync_weights(parts.student, self.state.step)
        clock.lap("sync")
        if not parts.engine.has_own_weights or limits is None:
            return {}
        # Prompts just answered: what the engine may still hold of the old weights, it holds for these.
        found = check_parity(parts.engine, parts.student, prompts[: limits.prompts], limits, self.config.seed)
        clock.lap("parity")
        return found.metrics

    def _first_sync(self) -> None:
        """The engine was made from the student's files; a resumed student is further, one with adapters is another."""
        found = self.sync(self.parts.stream.batch(self.state.step), Clock())
        if found:
            mean, largest = found["sync/parity_mean_gap"], found["sync/parity_max_gap"]
            self.display.line(f"engine and trainer agree: mean gap {mean:.2g}, largest {largest:.2g} nats per token")

    @property
    def _needs_student_logprobs(self) -> bool:
        from iwopd.training.update import needs_trainer_logprobs

        return needs_trainer_logprobs(self.parts.weighting, self.parts.loss, self.config.optim.updates_per_batch)

    def evaluate(self) -> None:
        """Measure the student on every benchmark, and write a few of its responses with their weights."""
        from iwopd.evaluation.evaluate import evaluate

        parts, config, step = self.parts, self.config, self.state.step
        clock, found = Clock(self.memory), []
        for benchmark in parts.benchmarks:
            with self.display.stage(f"evaluating on {benchmark.name}") as advance:
                found.append(
                    evaluate(
                        parts.engine,
                        benchmark,
                        parts.eval_sampling,
                        k=config.eval.k,
                        greedy=config.eval.greedy,
                        seed=config.seed,
                        decode=self._decode,
                        progress=advance,
                    )
                )
        clock.lap("eval")
        metrics = evaluation_metrics(found)
        with self.interrupts.deferred():
            self.tracker.log(step, metrics | clock.seconds)
            self.tracker.samples(step, self._samples(found))
            self.state.evaluated, self.state.accuracy = step, metrics["eval/accuracy"]
            graded = [item.rollout for evaluation in found for item in evaluation.graded]
            if self.schedule.evaluates_regularly(self.state):
                self.state.whole_length = whole_length(self.state.whole_length, graded)
            if step == 0:
                self.state.first_accuracy = self.state.accuracy
        for evaluation in found:
            self.display.line(f"after step {step}, {evaluation_line(evaluation.benchmark, evaluation.metrics)}")

    def _decode(self, ids: Any) -> str:
        return self.parts.tokenizer.decode(ids, skip_special_tokens=True)

    def _samples(self, found: "list[Evaluation]") -> list[dict[str, Any]]:
        """The first responses of an evaluation, token by token with log-probs, advantages and weights."""
        from iwopd.training.samples import sample_rows

        parts, config = self.parts, self.config
        rows = []
        for evaluation in found:
            made = sample_rows(
                evaluation.graded[:: config.eval.n or config.eval.k][: config.run.samples],
                parts.teacher,
                parts.student,
                parts.weighting,
                progress=self.schedule.progress(self.state),
                tokenizer=parts.tokenizer,
                base=parts.base,
                exopd_lambda=parts.loss.exopd_lambda,
            )
            rows += [{"benchmark": evaluation.benchmark, **row} for row in made]
        return rows

    def save(self) -> None:
        """A checkpoint of this step."""
        state, parts = self.state, self.parts

        def write(folder: Path) -> None:
            parts.student.save(folder, parts.tokenizer)
            state.written = self.tracker.state
            state.micro_batch_tokens = parts.student.micro_batch_tokens
            state.save(folder / "trainer.json")

        with self.interrupts.deferred():
            self.folder.save_checkpoint(state.step, write, self.config.run.keep)
            self.saved = state.step

    def _export(self) -> None:
        state = self.state
        if self.folder.final_step != state.step:  # a finished run that is resumed has it already, unless lengthened
            with self.interrupts.deferred():
                self.folder.save_final(self._write_final, state.step)
        if state.accuracy is None or state.first_accuracy is None:
            came = f"not evaluated, for there is no benchmark; {state.step} steps"
        else:
            came = f"accuracy {state.first_accuracy:.3f} before, {state.accuracy:.3f} after {state.step} steps"
        self.display.line(f"{self.config.run.name}: {came}; the student is in {self.folder.final}")

    def _write_final(self, folder: Path) -> None:
        tokenizer, state = self.parts.tokenizer, self.state
        self.parts.student.export(folder, tokenizer)
        chat = bool(tokenizer.chat_template)
        write_card(folder, self.folder.path, self.config, steps=state.step, tokens=state.tokens, chat=chat)
