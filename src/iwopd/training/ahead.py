"""Where a step's rollouts come from; with `rollout.ahead=1` they are those that were written during the step before.

At the beginning of step k its rollouts are there and those of step k + 1 are asked for: servers write them while step k
is scored and trained on, and they are waited for before the servers get new weights. So they are of the student of one
step before, which the importance correction of the loss (truncated importance sampling) compensates for, and no more
than one batch ever waits. Between steps nothing is under way: evaluations, parity checks and checkpoints find an engine
that has nothing else to do.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy

from iwopd.config import Config
from iwopd.config.horizon import weighted_tokens
from iwopd.errors import EngineError, NonFiniteError, first_line
from iwopd.rollout.base import Progress, UnderWay, ignore_rollout, no_progress
from iwopd.rollout.horizon import horizon_tokens
from iwopd.rollout.records import Answer, make_rollout
from iwopd.training.early_stop import RULES, EarlyStop
from iwopd.training.schedule import Position, Schedule
from iwopd.training.state import Components, State
from iwopd.types import Prompt, Rollout

log = logging.getLogger(__name__)
Made = TypeVar("Made")
FILE = "rollouts.npz"  # of a checkpoint: what waits for its next step


@dataclass(frozen=True)
class Batch:
    """The rollouts of a step.

    Attributes:
        after: steps taken before it.
        horizon: the longest that a response could be, tokens.
    """

    after: int
    horizon: int
    rollouts: list[Rollout]


@dataclass(frozen=True)
class Sent:
    """A `Batch` that is being written."""

    after: int
    horizon: int
    under_way: UnderWay


class Rollouts:
    """The rollouts of one step after another."""

    def __init__(self, config: Config, components: Components, schedule: Schedule):
        self.config = config
        self.components = components
        self.schedule = schedule
        self._batch: Batch | None = None  # of the step under way or, between steps, the next
        self._sent: Sent | None = None

    def of(self, state: State, prompts: Sequence[Prompt], progress: Progress = no_progress) -> Batch:
        """Those of the step that follows; with `rollout.ahead` the ones after them are under way from now on.

        Args:
            prompts: of that step.

        Raises:
            EngineError, NonFiniteError: see `Engine.generate`.
        """
        batch = self._batch
        if batch is None or batch.after != state.step:
            batch = self._generated(state, prompts, progress)
        if self.config.rollout.ahead:
            self._batch = batch
            self._send(state, batch)
        return batch

    def _generated(self, state: State, prompts: Sequence[Prompt], progress: Progress) -> Batch:
        parts, engine, settings = self.components, self.components.engine, self.config.rollout
        asked = EarlyStop(engine, parts.teacher, settings) if settings.stop_early in RULES else engine
        horizon, rollouts = self._ask(asked.generate, prompts, state, state, progress=progress)
        engine.sleep()
        return Batch(state.step, horizon, rollouts)

    def _send(self, state: State, batch: Batch) -> None:
        """Ask for the rollouts of the step after, if there will be one."""
        parts = self.components
        after = self.schedule.after(state, sum(len(each.response_ids) for each in batch.rollouts))
        if self.schedule.ended(after):
            return
        # A teacher that must not be spoken to meanwhile scores them all in their own step.
        more = {} if parts.teacher.concurrent else {"finished": ignore_rollout}
        horizon, under_way = self._ask(parts.engine.send, parts.stream.batch(after.step), after, state, **more)
        self._sent = Sent(after.step, horizon, under_way)

    def _ask(
        self,
        ask: Callable[..., Made],
        prompts: Sequence[Prompt],
        at: Position,
        state: State,
        **more: Any,  # noqa: ANN401  of `Engine.generate` or `Engine.send`
    ) -> tuple[int, Made]:
        """The horizon of the step at `at`, and what the engine answers when it is asked for its rollouts."""
        parts, progress = self.components, self.schedule.progress(at)
        horizon = horizon_tokens(self.config.rollout, progress, state.mean_response_length)
        if self.config.rollout.stop_early == "weightless":
            horizon = min(horizon, weighted_tokens(parts.objective.weighting, progress, horizon))
        window, signal = parts.objective.weighting.window(progress), parts.objective.signal
        given = {"finished": lambda rollout: parts.teacher.expect(rollout, window, signal), **more}
        sampling = replace(parts.sampling, max_tokens=horizon)
        return horizon, ask(prompts, sampling, seed=self.config.seed, stream=at.step, **given)

    # ------------------------------------------------------------------------------------------ between steps

    def under_way(self, state: State) -> bool:
        """Whether the next step's are being written."""
        return self._sent is not None and self._sent.after == state.step

    def settle(self, progress: Progress = no_progress) -> None:
        """Wait for what is under way: it is then there, whatever becomes of the engine.

        Raises:
            EngineError, NonFiniteError: it never comes; see `Engine.generate`.
        """
        sent = self._sent
        if sent is None:
            return
        try:
            self._batch = Batch(sent.after, sent.horizon, sent.under_way.collect(progress))
        except (EngineError, NonFiniteError):
            self._sent = None
            raise
        self._sent = None

    def settle_if_possible(self, state: State, progress: Progress = no_progress) -> None:
        """As `settle`, for a run that ends here: a warning where they never come."""
        try:
            self.settle(progress)
        except (EngineError, NonFiniteError) as error:
            log.warning("the rollouts of step %d are lost (%s)", state.step + 1, first_line(error))

    # ------------------------------------------------------------------------------------------ checkpoints

    def save(self, folder: Path, state: State) -> None:
        """Into a checkpoint of that state: the rollouts of the next step, for nobody can write them again."""
        batch = self._batch
        if not self.config.rollout.ahead or batch is None or batch.after != state.step:
            return
        made = batch.rollouts
        numpy.savez(
            folder / FILE,
            ids=numpy.concatenate([each.response_ids for each in made]),
            logprobs=numpy.concatenate([each.sampler_logprobs for each in made]),
            lengths=numpy.array([len(each.response_ids) for each in made]),
            ended=numpy.array([each.finish_reason == "stop" for each in made]),
            version=numpy.array([each.policy_version for each in made]),
            horizon=numpy.array(batch.horizon),
        )

    def load(self, folder: Path, state: State) -> None:
        """From a checkpoint of that state."""
        if not self.config.rollout.ahead or not state.step or self.schedule.ended(state):
            return
        if not (folder / FILE).exists():
            log.warning(
                "%s: holds no rollouts of step %d, which are generated anew: by a newer student than those of a run "
                "that went on",
                folder.name,
                state.step + 1,
            )
            return
        n, prompts = self.components.sampling.n, self.components.stream.batch(state.step)
        with numpy.load(folder / FILE, allow_pickle=False) as held:
            ends = numpy.cumsum(held["lengths"])[:-1]
            answers = [
                Answer(ids, logprobs, "stop" if ended else "length")
                for ids, logprobs, ended in zip(
                    numpy.split(held["ids"], ends), numpy.split(held["logprobs"], ends), held["ended"], strict=True
                )
            ]
            asked = [(prompt, sample) for prompt in prompts for sample in range(n)]
            rollouts = [
                make_rollout(prompt, sample, answer, self.components.sampling, int(version))
                for (prompt, sample), answer, version in zip(asked, answers, held["version"], strict=True)
            ]
            self._batch = Batch(state.step, int(held["horizon"]), rollouts)
