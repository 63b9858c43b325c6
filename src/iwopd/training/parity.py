"""Do engine and trainer hold the same weights? Their log-probs of the same tokens say so."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from iwopd.config import ParityConfig
from iwopd.errors import EngineError
from iwopd.models.student import Student
from iwopd.rollout.base import Engine, Sampling
from iwopd.training.score import trainer_logprobs
from iwopd.types import Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parity:
    """Gaps |engine's log-prob − trainer's| over the tokens of a few samples, nats."""

    mean_gap: float
    max_gap: float

    @property
    def metrics(self) -> dict[str, float]:
        return {"sync/parity_mean_gap": self.mean_gap, "sync/parity_max_gap": self.max_gap}


def measure_parity(engine: Engine, student: Student, prompts: Sequence[Prompt], max_tokens: int, seed: int) -> Parity:
    """The engine answers the prompts, and the trainer recomputes its log-probs.

    Temperature is 1 and nothing is cut off, so both are of the model's own distribution.
    """
    rollouts = engine.generate(prompts, Sampling(max_tokens=max_tokens), seed=seed, stream="parity")
    own = trainer_logprobs(student, rollouts, [(0, len(rollout.response_ids)) for rollout in rollouts])
    gaps = [
        abs(sampler - trainer)
        for rollout, logprobs in zip(rollouts, own, strict=True)
        for sampler, trainer in zip(rollout.sampler_logprobs.tolist(), logprobs.tolist(), strict=True)
    ]
    return Parity(statistics.fmean(gaps), max(gaps))


def check_parity(
    engine: Engine, student: Student, prompts: Sequence[Prompt], limits: ParityConfig, seed: int
) -> Parity:
    """To be called after a sync.

    Raises:
        EngineError: a gap is beyond `limits.fail`; says what is stale or different.
    """
    found = measure_parity(engine, student, prompts, limits.max_tokens, seed)
    said = f"engine and trainer differ: mean gap {found.mean_gap:.3g}, largest {found.max_gap:.3g} nats per token"
    if found.max_gap > limits.fail:
        raise EngineError(
            f"{said}, above rollout.parity.fail={limits.fail:g}: {_cause(engine, student, prompts, limits, seed)}"
        )
    if found.mean_gap > limits.warn:
        log.warning(
            "%s; above rollout.parity.warn=%g: the importance correction compensates for it, but look at rollout.dtype",
            said,
            limits.warn,
        )
    return found


class GapWatch:
    """Warns of a gap between sampler and trainer that shows only in training: the mean over all steps so far.

    Args:
        limit: nats per token, above which a warning is given; again where it has doubled since.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.sum, self.steps = 0.0, 0

    def see(self, gap: float) -> None:
        """`gap` is a step's train/sampler_gap_mean, nats per token, of samples from the model's own distribution."""
        self.sum, self.steps = self.sum + gap, self.steps + 1
        mean = self.sum / self.steps
        if mean <= self.limit:
            return
        self.limit = 2 * mean
        log.warning(
            "train/sampler_gap_mean: sampler and trainer differ by %.3g nats per token over %d steps; the importance "
            "correction compensates for it, but A_t is of another policy than the one that answered: compare dtype "
            "and attention, or use student.dtype=float32",
            mean,
            self.steps,
        )


def _cause(engine: Engine, student: Student, prompts: Sequence[Prompt], limits: ParityConfig, seed: int) -> str:
    """What is wrong, found out by fixing one thing after the other."""

    def agree() -> bool:
        return measure_parity(engine, student, prompts, limits.max_tokens, seed).max_gap <= limits.fail

    engine.reset_cache()
    if agree():
        return "its prefix cache was stale (without it they agree); please report this engine"
    engine.sync_weights(student, student.updates)
    if agree():
        return "it had not taken over the last weights (sent again, they agree); look at its log"
    tied = getattr(student.model.config, "tie_word_embeddings", False)
    head = "; the embeddings are tied, so its head may have kept old weights" if tied else ""
    return (
        f"sent again, the weights still do not arrive whole, or the model is computed otherwise there{head}; compare "
        "rollout.dtype and the attention of both, raise rollout.parity.fail if this gap is known, or use rollout=hf"
    )
