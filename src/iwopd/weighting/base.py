"""A weighting scheme as the stages see it: a pure function, its window, and whether it needs the whole batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iwopd.errors import ConfigError, NonFiniteError
from iwopd.models.batch import Batch, Window, collate
from iwopd.numerics import WeightInput, exopd_advantage, opd_advantage
from iwopd.types import ScoredRollout


def whole_response(length: int, progress: float) -> tuple[int, int]:
    """The window of schemes that may weigh every token."""
    return 0, length


@dataclass(frozen=True)
class Weighting:
    """One scheme with its parameters.

    Attributes:
        name: for messages and tables.
        weigh: from a `WeightInput` to detached weights [batch, time].
        bounds: from a response's length and the training progress to the window ``[start, stop)`` outside which every
            weight is zero; what lies behind it is neither scored nor trained on.
        needs_batch: `weigh` must see the whole rollout batch at once, so the student scores it before the update.
        keeps_all: every token of the window counts, however small its weight: it is in the mean also where float32 has
            no number small enough. Else the tokens of weight 0 are those that the scheme leaves out.
    """

    name: str
    weigh: Callable[[WeightInput], Tensor]
    bounds: Callable[[int, float], tuple[int, int]] = whole_response
    needs_batch: bool = False
    keeps_all: bool = False

    def window(self, progress: float) -> Window:
        """The window at this point of the training."""
        return lambda length: self.bounds(length, progress)

    def weights(self, batch: Batch, advantages: Tensor, progress: float) -> Tensor:
        """[batch, time] weights of one batch, checked and detached.

        Raises:
            ConfigError: the scheme returned something else than finite weights of that shape.
        """
        tokens = batch.tokens
        given = WeightInput(
            advantages, tokens.mask, tokens.positions, tokens.lengths, batch.teacher_logprobs, progress, batch.seeds
        )
        return self.checked(given)

    def kept(self, weights: Tensor, mask: Tensor) -> Tensor:
        """[batch, time]: True for the tokens that the scheme keeps."""
        return mask if self.keeps_all else mask & (weights != 0)

    def checked(self, given: WeightInput) -> Tensor:
        """[batch, time] weights: finite, detached, 0 outside the mask.

        Raises:
            ConfigError: see `weights`.
        """
        advantages, weights = given.advantages, self.weigh(given)
        if not isinstance(weights, Tensor) or weights.shape != advantages.shape:
            found = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ConfigError(f"weighting={self.name}: returned {found}; return weights {list(advantages.shape)}")
        weights = torch.where(given.mask, weights.detach().to(advantages), torch.zeros_like(advantages))
        if not weights.isfinite().all():
            raise ConfigError(f"weighting={self.name}: returned NaN or infinite weights; mend the scheme")
        return weights


def batch_advantages(batch: Batch, student_logprobs: Tensor | None, source: str, exopd_lambda: float = 1.0) -> Tensor:
    """A_t of a batch, with the student's log-probs that `scoring.student_logprobs` names.

    Args:
        student_logprobs: [batch, time], the trainer's; None where they were not made.
        source: "trainer" or "sampler".
        exopd_lambda: λ; any but 1 needs the base model's log-probs.

    Raises:
        ValueError: the log-probs asked for are not there.
        NonFiniteError: an advantage is NaN or infinite; names the rollouts.
    """
    chosen = batch.sampler_logprobs if source == "sampler" else student_logprobs
    if chosen is None:
        raise ValueError("the advantage needs the trainer's log-probs, and nothing recorded them")
    teacher, mask = batch.teacher_logprobs, batch.tokens.mask
    if exopd_lambda == 1:
        advantages = opd_advantage(teacher, chosen, mask)
    elif batch.base_logprobs is None:
        raise ValueError("ExOPD's advantage needs the base model's log-probs, and nothing recorded them")
    else:
        advantages = exopd_advantage(teacher, chosen, batch.base_logprobs, mask, exopd_lambda)
    check_finite(advantages, "advantage", batch)
    return advantages


def check_finite(values: Tensor, what: str, batch: Batch) -> None:
    """Raise NonFiniteError, naming the rollouts, unless all of `values` [batch, time] are finite."""
    if values.isfinite().all():
        return
    rows = (~values.isfinite().all(-1)).nonzero().flatten().tolist()
    names = ", ".join(batch.names[row] for row in rows[:5]) + (", …" if len(rows) > 5 else "")
    raise NonFiniteError(
        f"the {what} is NaN or infinite on {names}; no step was taken: lower optim.lr, or look at these rollouts"
    )


def whole_batch_weights(
    weighting: Weighting,
    scored: Sequence[ScoredRollout],
    seeds: Sequence[int],
    source: str,
    progress: float,
    exopd_lambda: float = 1.0,
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and advantages of every rollout, made from the whole batch at once; a [time] tensor per rollout each."""
    batch = collate(scored, seeds)
    advantages = batch_advantages(batch, batch.trainer_logprobs, source, exopd_lambda)
    weights = weighting.weights(batch, advantages, progress)
    counts = batch.tokens.mask.sum(-1).tolist()

    def rows(padded: Tensor) -> list[Tensor]:
        return [row[:count] for row, count in zip(padded, counts, strict=True)]

    return rows(weights), rows(advantages)
