"""When a run evaluates, saves and ends, how far it is, and its learning rate there: all of it is asked here.

A run ends after `run.steps` steps or, where `run.tokens` is set, once that many response tokens were generated. With

    done     steps taken, or response tokens generated for them
    total    run.steps, or run.tokens
    each     1, or the mean number of tokens of the steps so far

the progress before a step, of annealed weightings and of a growing horizon, is

    min(1, done / (total − each))

0 at the first step and 1 at the last: of a budget of tokens, exactly if all steps generate equally many, and nearly
else, for how many the last one generates is known only after it. The learning rate decays with done / total instead, so
that it would reach its end only after the last step, which must not be wasted on a rate of 0.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from iwopd.config import Config, OptimConfig


@dataclass
class Position:
    """How far a run is between two steps.

    Attributes:
        step: steps taken.
        tokens: response tokens generated for them.
        warmup_tokens: of these, those generated before the step in which the learning rate begins to decay.
    """

    step: int = 0
    tokens: int = 0
    warmup_tokens: int = 0


@dataclass(frozen=True)
class Schedule:
    """The plan of a run.

    Attributes:
        steps: rollout batches in all, unless there is a budget.
        tokens: the budget of response tokens; None for `steps`.
        evaluate_every: steps between evaluations; 0 for the first and the last alone, None for none.
        save_every: steps between checkpoints; 0 for the last alone.
        optim: learning rate, warm-up and decay.
    """

    steps: int
    tokens: int | None = None
    evaluate_every: int | None = None
    save_every: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)

    @classmethod
    def of(cls, config: Config) -> "Schedule":
        """A run's; without a benchmark there is nothing to evaluate on."""
        every = config.eval.every if config.eval.benchmarks else None
        return cls(config.run.steps, config.run.tokens, every, config.run.save_every, config.optim)

    # ------------------------------------------------------------------------------------------ when

    def ended(self, at: Position) -> bool:
        """True when there is no step left."""
        return at.step >= self.steps if self.tokens is None else at.tokens >= self.tokens

    def evaluates(self, at: Position) -> bool:
        """True if the student is evaluated here: regularly, and at the end."""
        return self.evaluates_regularly(at) or (self.evaluate_every is not None and self.ended(at))

    def evaluates_regularly(self, at: Position) -> bool:
        """True if it is evaluated here whether the run ends or not. Training may depend on these evaluations alone: a
        run that is lengthened must not differ from one that was longer from the start."""
        return self.evaluate_every is not None and _falls_on(at.step, self.evaluate_every)

    def saves(self, at: Position) -> bool:
        """True if a checkpoint is due here; there is none before the first step."""
        return at.step > 0 and (_falls_on(at.step, self.save_every) or self.ended(at))

    def advance(self, at: Position, generated: int) -> None:
        """One step was taken, for which so many response tokens were generated."""
        at.step += 1
        at.tokens += generated
        if at.step <= self.optim.warmup_steps // self.optim.updates_per_batch:
            at.warmup_tokens = at.tokens

    def after(self, at: Position, generated: int) -> Position:
        """Where a run is after the step at `at`, if so many response tokens are generated for it."""
        found = Position(at.step, at.tokens, at.warmup_tokens)
        self.advance(found, generated)
        return found

    # ------------------------------------------------------------------------------------------ how far

    def progress(self, at: Position) -> float:
        """How far the training is: 0 at the first step, 1 at the last."""
        if at.step == 0:
            return 0.0
        if self.tokens is None:
            done, total, each = at.step, self.steps, 1.0
        else:
            done, total, each = at.tokens, self.tokens, at.tokens / at.step
        return min(1.0, done / (total - each)) if total > each else 1.0

    def extent(self, at: Position) -> tuple[int, int, str]:
        """For a bar: how much is done, of how much, and the unit."""
        return (at.step, self.steps, "steps") if self.tokens is None else (at.tokens, self.tokens, "tokens")

    def said(self, at: Position) -> str:
        """The position in words: `step 7/12`, or `step 7, 12.3 k of 15 k tokens`."""
        if self.tokens is None:
            return f"step {at.step}/{self.steps}"
        return f"step {at.step}, {_short(at.tokens)} of {_short(self.tokens)} tokens"

    def learning_rate(self, at: Position, update: int) -> float:
        """The rate of optimiser update `update`, counted from 0 over the run: linear warm-up to `optim.lr` over
        `optim.warmup_steps` updates, then constant, or falling to `optim.final_lr` of it.

        With a budget of tokens, all updates of a rollout batch after the warm-up have one rate.
        """
        optim = self.optim
        if update < optim.warmup_steps:
            return optim.lr * (update + 1) / optim.warmup_steps
        done, total = update - optim.warmup_steps, self.steps * optim.updates_per_batch - optim.warmup_steps
        if self.tokens is not None:
            done, total = at.tokens - at.warmup_tokens, self.tokens - at.warmup_tokens
        share = _left(optim.schedule, min(1.0, done / max(1, total)))
        return optim.lr * (optim.final_lr + (1 - optim.final_lr) * share)

    # ------------------------------------------------------------------------------------------ beforehand

    def expected_steps(self, tokens: float) -> int:
        """Steps of the whole run, if each generates so many response tokens."""
        return self.steps if self.tokens is None else math.ceil(self.tokens / tokens)

    def evaluations(self, steps: int) -> int:
        """How often a run of that many steps evaluates."""
        if self.evaluate_every is None:
            return 0
        return 1 + _times(steps, self.evaluate_every)

    def checkpoints(self, steps: int) -> int:
        """How often a run of that many steps saves."""
        return _times(steps, self.save_every)

    def remaining(self, at: Position) -> dict[Literal["steps", "evaluations", "checkpoints"], float]:
        """How many of each are still to come after the step at `at`, with what is due there done; of a budget of
        tokens, if steps generate as many as those so far."""
        if self.ended(at):
            return {"steps": 0, "evaluations": 0, "checkpoints": 0}
        last = self.steps
        if self.tokens is not None:
            last = at.step + math.ceil((self.tokens - at.tokens) * at.step / at.tokens) if at.tokens else 1
        passed = at.step // (self.evaluate_every or last + 1), at.step // (self.save_every or last + 1)
        return {
            "steps": last - at.step,
            "evaluations": 0 if self.evaluate_every is None else _times(last, self.evaluate_every) - passed[0],
            "checkpoints": self.checkpoints(last) - passed[1],
        }


def _falls_on(step: int, every: int) -> bool:
    return step % every == 0 if every else step == 0


def _times(steps: int, every: int) -> int:
    """Of the steps after the first position, those that fall on `every`, and the last."""
    return math.ceil(steps / every) if every else min(1, steps)


def _short(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + f" {unit}"
    return str(number)


def _left(decay: str, done: float) -> float:
    """Share of the learning rate's fall that is still to come."""
    match decay:
        case "linear":
            return 1.0 - done
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case _:
            return 1.0


def depending_on_the_end(config: Config) -> list[str]:
    """The settings by which a step depends on when the run will end: a run that has one cannot be lengthened."""
    optim, rollout, weighting = config.optim, config.rollout, config.weighting
    found: list[str] = []
    if optim.schedule != "constant" and optim.final_lr < 1:
        found.append(f"optim.schedule={optim.schedule}")
    if weighting.annealed:
        found.append(weighting.annealed)
    if rollout.horizon_end is not None and rollout.horizon_end != rollout.horizon:
        found.append(f"rollout.horizon_end={rollout.horizon_end:g}")
    return found
