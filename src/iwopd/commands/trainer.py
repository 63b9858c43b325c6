"""The training loop: it reads like the paper's algorithm, with evaluations and checkpoints between steps."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwopd import build
from iwopd.card import write_card
from iwopd.commands.metrics import Clock, evaluation_metrics, gpu_memory, sizes
from iwopd.commands.parts import Parts, State
from iwopd.config import Config
from iwopd.display import Display, evaluation_line, step_line
from iwopd.errors import EngineError, NonFiniteError
from iwopd.horizon import horizon_tokens, whole_length
from iwopd.interrupts import ForcedStop, Interrupts, Stopped
from iwopd.memory_watch import MemoryWatch
from iwopd.seeding import derive_seed
from iwopd.store import RunFolder
from iwopd.tracking import Tracker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iwopd.stages.evaluation import Evaluation
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
        self.loss = build.loss_settings(config)
        self.sampling = build.sampling(config.rollout)
        self.parity = build.parity(config.rollout)
        self.memory = MemoryWatch()

    def train(self) -> float:
        """Steps, evaluations and checkpoints until `run.steps`; the last accuracy."""
        state, run = self.state, self.config.run
        try:
            self._first_sync()
            while True:
                self.display.steps(state.step, run.steps)
                if self._due(self.config.eval.every) and state.evaluated < state.step:
                    self.evaluate()
                if state.step and self._due(run.save_every) and self.saved < state.step:
                    self.save()
                if self.finished:
                    break
                self._step_or_explain()
            self._export()
        except ForcedStop:
            raise
        except Stopped as stop:
            if self.saved < state.step:
                try:
                    self.save()
                except Stopped:  # asked again: the save was whole, or the checkpoint before stays
                    sys.exit(stop.status)
            self.display.line(
                f"stopped after step {state.step} of {run.steps}, saved; go on with: "
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

    def _due(self, every: int) -> bool:
        step = self.state.step
        return self.finished or (step % every == 0 if every else step == 0)

    @property
    def finished(self) -> bool:
        """True when run.steps were taken or, where run.tokens is given, that many tokens generated."""
        run = self.config.run
        return self.state.step >= run.steps if run.tokens is None else self.state.tokens >= run.tokens

    def step(self) -> None:
        """One step of on-policy distillation (arXiv 2606.22600)."""
        from iwopd.stages import score, update

        parts, config, step = self.parts, self.config, self.state.step
        progress, clock = self.progress, Clock(self.memory)
        prompts = parts.stream.batch(step)
        horizon = horizon_tokens(config.rollout, progress, self.state.whole_length)
        window = parts.weighting.window(progress)
        with self.display.stage(f"step {step + 1}: rollout") as advance:
            rollouts = parts.engine.generate(
                prompts,
                replace(self.sampling, max_tokens=horizon),
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
                hidden=self.loss.kind == "reverse_kl",
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
                self.loss,
                seeds=[derive_seed(config.seed, step, item.prompt_id, item.sample) for item in rollouts],
                progress=progress,
                updates=config.optim.updates_per_batch,
                teacher_head=parts.teacher.head() if self.loss.kind == "reverse_kl" else None,
                advance=advance,
            )
            clock.lap("update")
            self.state.step += 1
            metrics |= {
                "train/lr": learning_rate,
                "train/epoch": (step + 1) / parts.stream.steps_per_epoch,
                "train/horizon": horizon,
                **sizes(scored),
                **gpu_memory(parts.student.device),
            }
            self.state.tokens += int(metrics["tokens/generated"])
            if step == 0:
                metrics["data/dropped"] = parts.dropped
            try:
                metrics |= self.sync(prompts, clock)
            finally:  # an engine that fails here does not undo the step
                metrics |= clock.seconds
                self.tracker.log(self.state.step, metrics)
        self.display.line(step_line(self.state.step, config.run.steps, metrics))

    def sync(self, prompts: "Sequence[Prompt]", clock: Clock) -> dict[str, float]:
        """Give the engine the student's weights, and see that it has them; metrics of the comparison.

        Raises:
            EngineError: it does not take them, or answers as if it had not.
        """
        from iwopd.stages import check_parity

        parts, limits = self.parts, self.parity
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
        # A forward pass of its own is spent only where the update's cannot serve.
        whole_batch = self.parts.weighting.needs_batch and self.loss.student_logprobs == "trainer"
        return whole_batch or self.config.optim.updates_per_batch > 1

    def evaluate(self) -> None:
        """Measure the student on every benchmark, and write a few of its responses with their weights."""
        from iwopd.stages import evaluate

        parts, config, step = self.parts, self.config, self.state.step
        clock, found = Clock(self.memory), []
        for benchmark in parts.benchmarks:
            with self.display.stage(f"evaluating on {benchmark.name}") as advance:
                found.append(
                    evaluate(
                        parts.engine,
                        benchmark,
                        build.eval_sampling(config),
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
            self.state.whole_length = whole_length(self.state.whole_length, graded)
            if step == 0:
                self.state.first_accuracy = self.state.accuracy
        for evaluation in found:
            self.display.line(f"after step {step}, {evaluation_line(evaluation.benchmark, evaluation.metrics)}")

    def _decode(self, ids: Any) -> str:
        return self.parts.tokenizer.decode(ids, skip_special_tokens=True)

    def _samples(self, found: "list[Evaluation]") -> list[dict[str, Any]]:
        """The first responses of an evaluation, token by token with log-probs, advantages and weights."""
        from iwopd.samples import sample_rows

        parts, config = self.parts, self.config
        rows = []
        for evaluation in found:
            made = sample_rows(
                evaluation.graded[:: config.eval.n or config.eval.k][: config.run.samples],
                parts.teacher,
                parts.student,
                parts.weighting,
                progress=self.progress,
                tokenizer=parts.tokenizer,
                base=parts.base,
                exopd_lambda=self.loss.exopd_lambda,
            )
            rows += [{"benchmark": evaluation.benchmark, **row} for row in made]
        return rows

    @property
    def progress(self) -> float:
        """Share of the training done: 0 at the first step, 1 at the last."""
        return min(1.0, self.state.step / max(1, self.config.run.steps - 1))

    def save(self) -> None:
        """A checkpoint of this step."""
        state, parts = self.state, self.parts

        def write(folder: Path) -> None:
            parts.student.save(folder, parts.tokenizer)
            state.written = self.tracker.state
            state.micro_batch_tokens = parts.student.micro_batch_tokens
            (folder / "trainer.json").write_text(json.dumps(asdict(state)))

        with self.interrupts.deferred():
            self.folder.save_checkpoint(state.step, write, self.config.run.keep)
            self.saved = state.step

    def _export(self) -> None:
        final = self.folder.final
        if not (final / "config.json").exists():  # a finished run that is resumed has it already
            with self.interrupts.deferred():
                self.folder.save_final(self._write_final)
        state = self.state
        self.display.line(
            f"{self.config.run.name}: accuracy {state.first_accuracy:.3f} before, {state.accuracy:.3f} after "
            f"{state.step} steps; the student is in {final}"
        )

    def _write_final(self, folder: Path) -> None:
        tokenizer, state = self.parts.tokenizer, self.state
        self.parts.student.export(folder, tokenizer)
        chat = bool(tokenizer.chat_template)
        write_card(folder, self.folder.path, self.config, steps=state.step, tokens=state.tokens, chat=chat)
