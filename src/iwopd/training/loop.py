"""The paper's algorithm (arXiv 2606.22600): sample from the student, score with the teacher, weight, update, sync."""

from collections.abc import Sequence
from typing import Any

from iwopd.config import Config
from iwopd.models.student import Student
from iwopd.runs.interrupts import Interrupts
from iwopd.seeding import derive_seed
from iwopd.training.ahead import Rollouts
from iwopd.training.collapse import Context, alarm, endings
from iwopd.training.metrics import gpu_memory, sizes, staleness
from iwopd.training.parity import check_parity
from iwopd.training.positions import by_tenth
from iwopd.training.schedule import Schedule
from iwopd.training.score import score
from iwopd.training.stages import Stages
from iwopd.training.state import Components, State
from iwopd.training.update import update
from iwopd.types import Prompt, Rollout, ScoredRollout


class Loop:
    """One step after another; `TrainingRun` decides how many, and evaluates and saves between them.

    Attributes:
        metrics: of the step under way.
        positions: of the step under way, see `iwopd.training.positions`; None before its update.
        collapse: why its responses are an alarm; None where they are not. See `iwopd.training.collapse`.
    """

    def __init__(
        self,
        config: Config,
        components: Components,
        schedule: Schedule,
        state: State,
        stages: Stages,
        interrupts: Interrupts,
    ):
        self.config = config
        self.components = components
        self.schedule = schedule
        self.state = state
        self.stage = stages
        self.interrupts = interrupts
        self.metrics: dict[str, float] = {}
        self.positions: dict[str, Any] | None = None
        self.collapse: str | None = None
        self.rollouts = Rollouts(config, components, schedule)
        components.student.schedule = lambda update: schedule.learning_rate(state, update)

    def step(self) -> None:
        """One step of on-policy distillation."""
        prompts = self.components.stream.batch(self.state.step)  # x ~ D
        rollouts = self.generate(prompts)  # y ~ π_θ(·|x), with the engine's log-probs; with rollout.ahead, of θ before
        scored = self.score(rollouts)  # log π_T(y_t | x, y_<t), on the window that can have weight
        scored = self.reward(prompts, scored)  # r(x, y), where a task gives one beside the teacher
        self.update(scored)  # w = w(A_1 … A_T);  θ ← θ − η ∇ Σ w_t ℓ_t / D
        self.settle()  # with rollout.ahead, the next y are there
        self.sync(prompts)  # the engine gets θ; parity is checked

    def generate(self, prompts: Sequence[Prompt]) -> list[Rollout]:
        """`rollout.n` responses to each prompt, sampled from the student; see `iwopd.training.ahead`."""
        with self.stage("rollout") as advance:
            batch = self.rollouts.of(self.state, prompts, advance)
        self.metrics["train/horizon"] = batch.horizon
        return batch.rollouts

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """The teacher's log-probs of the rollouts' tokens, and what else the loss and the weighting need."""
        objective = self.components.objective
        with self.stage("score") as advance:
            return score(
                self.components.teacher,
                rollouts,
                objective.weighting.window(self.schedule.progress(self.state)),
                student=self._student_that_scores,
                base=self.components.base,
                signal=objective.signal,
                objective=objective,
                progress=advance,
            )

    def reward(self, prompts: Sequence[Prompt], scored: list[ScoredRollout]) -> list[ScoredRollout]:
        """The records with the task's reward, where there is one."""
        if self.components.reward is None:
            return scored
        with self.stage("grade"):
            rewarded, metrics = self.components.reward(prompts, scored)
        self.metrics |= metrics
        return rewarded

    @property
    def _student_that_scores(self) -> Student | None:
        parts, updates = self.components, self.config.optim.updates_per_batch
        return parts.student if parts.objective.needs_student_first(updates) else None

    def update(self, scored: Sequence[ScoredRollout]) -> None:
        """Weights, loss, gradients and one optimiser step, or several; then the step counts as taken.

        Ctrl-C waits for all of it: weights, optimiser and state change together or not at all.
        """
        parts, state, seed = self.components, self.state, self.config.seed
        rollouts = [record.rollout for record in scored]
        progress, learning_rate = self.schedule.progress(state), parts.student.current_lr
        stale = staleness(scored, parts.student.updates)
        with self.interrupts.deferred(), self.stage("update") as advance:
            self.metrics |= update(
                parts.student,
                scored,
                parts.objective,
                seeds=[derive_seed(seed, state.step, item.prompt_id, item.sample) for item in rollouts],
                progress=progress,
                updates=self.config.optim.updates_per_batch,
                teacher_heads=parts.teacher.heads() if parts.objective.signal.kind == "full" else None,
                advance=advance,
            )
            parts.teacher.follow(parts.student)
            parts.gaps.see(self.metrics["train/sampler_gap_mean"])
            self.metrics |= {"train/lr": learning_rate, "train/progress": progress, "train/staleness": stale}
            self.metrics |= sizes(scored)
            self.metrics |= gpu_memory(parts.student.device)
            self.schedule.advance(state, int(self.metrics["tokens/generated"]))
            self._watch(scored)
            self.positions = by_tenth(scored)
            self.metrics["train/epoch"] = state.step / parts.stream.steps_per_epoch

    def _watch(self, scored: Sequence[ScoredRollout]) -> None:
        """Note how the responses end; `collapse` says what is wrong with that, if something is."""
        parts, state, rollout = self.components, self.state, self.config.rollout
        limit, reverse_kl = int(self.metrics["train/horizon"]), self.metrics["train/reverse_kl"]
        found = endings(scored, step=state.step, limit=limit, reverse_kl=reverse_kl)
        self.metrics |= found.metrics
        if limit < rollout.max_tokens or rollout.stop_early != "none":
            return  # cut on purpose
        state.watched.see(found)
        context = Context(parts.stop_ids, parts.objective.loss.bounded, state.accuracy, state.first_accuracy)
        self.collapse = alarm(state.watched, context)
        if self.collapse:
            state.watched.restart()

    def settle(self) -> None:
        """Wait for the next step's rollouts, where they are under way: the engine must not get other weights before."""
        if self.rollouts.under_way(self.state):
            with self.stage("rollout", f"step {self.state.step}: rollouts of the next step") as advance:
                self.rollouts.settle(advance)

    def sync(self, prompts: Sequence[Prompt]) -> None:
        """Give the engine the student's weights, and see that it has them.

        Args:
            prompts: answered before: what the engine may still hold of the old weights, it holds for these.

        Raises:
            EngineError: it does not take them, or answers as if it had not.
        """
        parts, limits = self.components, self.components.parity
        with self.stage("sync"):
            parts.engine.sync_weights(parts.student, parts.student.updates)
        if parts.engine.has_own_weights and limits is not None:
            with self.stage("parity"):
                found = check_parity(parts.engine, parts.student, prompts[: limits.prompts], limits, self.config.seed)
            self.metrics |= found.metrics
