"""A run as `iwopd doctor` sees it: the config, the machine, models without data, and what follows of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from iwopd import assembly
from iwopd.config import Config, HfScoringConfig, VllmRolloutConfig, VllmScoringConfig
from iwopd.config.gpus import Card
from iwopd.doctor import cpu
from iwopd.doctor.fake_model import Work
from iwopd.doctor.lengths import Lengths
from iwopd.doctor.machine import Machine
from iwopd.doctor.models import Model, Scorer
from iwopd.doctor.sharding import Sharding
from iwopd.machine import runtime

PROGRESS = (0.0, 0.25, 0.5, 0.75, 1.0)  # points of the training at which windows that grow are looked at

Window = Callable[[int, float], tuple[int, int]]  # of a response's length and the progress


@dataclass(frozen=True)
class Run:
    """A run on a machine: what of its config, models and lengths decides how much memory and time it takes.

    Attributes:
        further: models that score beside the teacher.
        window: the weighting's.
        needs_batch: the student scores the whole batch before the update.
        program: bytes of host memory that Python and its libraries take.
        sharding: how several processes share the models.
    """

    config: Config
    machine: Machine
    student: Model
    teacher: Model
    lengths: Lengths
    window: Window
    needs_batch: bool
    program: float = 0.0
    further: tuple[Scorer, ...] = ()
    sharding: Sharding = field(default_factory=Sharding)

    @property
    def card(self) -> Card | None:
        """Whose figures the times are made of: none for models so small that calls take longer than products."""
        if self.machine.kind == "cuda" or self.student.shape.parameters < runtime.SMALL:
            return self.machine.card
        return cpu.measured()

    @property
    def shares(self) -> tuple[float, float]:
        """Of the card's products and of its bandwidth that are reached; what was measured is reached."""
        doctor = self.config.doctor
        return (doctor.utilisation, doctor.bandwidth) if self.machine.kind == "cuda" else (1.0, 1.0)

    @property
    def scorers(self) -> list[Scorer]:
        """The teacher, further ones, and ExOPD's base."""
        return [Scorer("teacher", self.config.teacher, self.teacher), *self.further]

    @property
    def in_transformers(self) -> list[Scorer]:
        """Those that score in the training process without vLLM: the base always does."""
        hf = isinstance(self.config.scoring, HfScoringConfig)
        return [scorer for scorer in self.scorers if hf or scorer.key == "base"]

    @property
    def in_vllm(self) -> list[Scorer]:
        """Those with an engine in the training process."""
        vllm = isinstance(self.config.scoring, VllmScoringConfig)
        return [scorer for scorer in self.scorers if vllm and scorer.key != "base"]

    @property
    def heads_here(self) -> list[Scorer]:
        """Those of which the head alone is in the training process: engines or servers give their hidden states."""
        full = self.config.loss.teacher_signal.kind == "full"
        return [scorer for scorer in self.scorers if full and scorer not in self.in_transformers]

    def device_of(self, scorer: Scorer) -> str | None:
        """Where a model in transformers computes, if that is not where the student trains."""
        own, student = scorer.section.device, self.config.run.device
        if self.machine.kind != "cuda" or own is None:
            return None
        named = {"auto": "cuda:0", "cuda": "cuda:0"}
        return None if named.get(own, own) == named.get(student, student) else named.get(own, own)

    @property
    def sequences(self) -> int:
        """Rollouts of one optimiser step, of one process."""
        whole = self.config.data.batch_size * self.config.rollout.n // self.config.optim.updates_per_batch
        return self.sharding.share(whole)

    @property
    def scores_itself(self) -> bool:
        """The student's log-probs are made before the update, too."""
        asked = self.config.scoring.student_logprobs == "trainer" or bool(self.config.weighting.measures)
        return (self.needs_batch and asked) or self.config.optim.updates_per_batch > 1

    def micro_batch(self, limit: int, prompt: int | None = None) -> Work:
        """The largest batch of longest sequences that a limit of tokens allows, after the student's longest prompt or
        one of `prompt` tokens."""
        prompt = prompt or self.lengths.prompt
        start, stop = max((self.window(self.lengths.response, at) for at in PROGRESS), key=lambda window: window[1])
        rows = max(1, limit // (prompt + stop))
        return Work(min(rows, max(1, self.sequences)), prompt, start, stop)

    def engine_dtype(self, model: Model) -> str:
        if model is self.student and isinstance(self.config.rollout, VllmRolloutConfig):
            return assembly.engine_dtype(self.config, self.config.rollout.dtype)
        return self.config.teacher.dtype

    @property
    def context(self) -> int:
        """Longest sequence, tokens."""
        return max(self.lengths.prompt, self.lengths.taught) + max(self.lengths.response, self.lengths.evaluated)
