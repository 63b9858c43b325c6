"""What an update minimises: which tokens count, with which loss, and whose log-probs A_t is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from iwopd.config import Config
from iwopd.errors import ConfigError, NonFiniteError
from iwopd.losses import Loss
from iwopd.losses.policy_gradient import PolicyGradient
from iwopd.models.batch import Batch, collate
from iwopd.numerics import (
    Head,
    Measure,
    TokenSignal,
    WeightInput,
    exopd_advantage,
    full_signal,
    opd_advantage,
    top_k_signal,
)
from iwopd.numerics.divergence import MEASURES
from iwopd.types import ScoredRollout, Signal
from iwopd.weighting import Weighting


@dataclass(frozen=True)
class Objective:
    """Sections of the config that belong together.

    Attributes:
        weighting: w_t.
        loss: what w_t multiplies.
        student_logprobs: "trainer" or "sampler": which log-probs of the student enter A_t.
        vocabulary: ids below it are tokens that all models have; None for all of the student's.
    """

    weighting: Weighting
    loss: Loss = field(default_factory=PolicyGradient)
    student_logprobs: str = "trainer"
    vocabulary: int | None = None

    @classmethod
    def of(cls, config: Config, vocabulary: int | None = None) -> Self:
        """A run's."""
        return cls(config.weighting, config.loss, config.scoring.student_logprobs, vocabulary)

    @property
    def signal(self) -> Signal:
        """What the teacher is asked for."""
        return self.loss.teacher_signal

    def weight_measures(self) -> dict[str, Measure]:
        """What the weighting needs of both distributions, by name."""
        return {name: MEASURES[name] for name in self.weighting.measures}

    def measures(self) -> tuple[dict[str, Measure], dict[str, Measure]]:
        """What a forward pass makes beyond the sampled signal, by name: that which gradients flow to, and the rest."""
        trained = self.loss.trained()
        always = {
            name: MEASURES[name] for name in ("reverse_kl", "logprobs", "teacher_logprobs") if name not in trained
        }
        return trained, {**always, **self.loss.known(), **self.weight_measures()}

    def signals(self, batch: Batch, heads: Mapping[str, Head]) -> list[TokenSignal]:
        """What the teachers said of a batch's tokens, to be made into categories.

        Args:
            heads: for the signal "full", by teacher.
        """
        if self.signal.kind == "top_k":
            ids, logprobs = batch.teacher_topk_ids, batch.teacher_topk_logprobs
            assert ids is not None, "score() keeps what the loss asks for"
            assert logprobs is not None, "they come with the ids"
            tail: Any = self.loss.tail  # its choices are checked by the schema
            own = batch.teacher_logprobs[batch.tokens.mask]
            return [top_k_signal(ids, logprobs, own, tail, self.vocabulary)]
        assert batch.teacher_hidden is not None, "score() keeps what the loss asks for"
        return [
            full_signal(states, heads[name], batch.places_of(name)) for name, states in batch.teacher_hidden.items()
        ]

    def needs_student_first(self, updates: int) -> bool:
        """Whether `score` must record the student's log-probs, because those of the update's own forward pass would
        come too late: for weights of the whole batch, or after the first of several optimiser steps."""
        of_batch = self.weighting.needs_batch and self.student_logprobs == "trainer"
        return of_batch or self.loss.needs_student_first(updates)

    def advantages(self, batch: Batch, own: Tensor | None) -> Tensor:
        """A_t [batch, time], nats.

        Args:
            own: [batch, time], the trainer's log-probs; None where they were not made.

        Raises:
            ValueError: the log-probs asked for are not there.
            NonFiniteError: an advantage is NaN or infinite; names the rollouts.
        """
        chosen, teacher, mask = self._chosen(batch, own), batch.teacher_logprobs, batch.tokens.mask
        if self.loss.exopd_lambda == 1:
            return _finite(opd_advantage(teacher, chosen, mask), batch)
        if batch.base_logprobs is None:
            raise ValueError("ExOPD's advantage needs the base model's log-probs, and nothing recorded them")
        found = exopd_advantage(teacher, chosen, batch.base_logprobs, mask, self.loss.exopd_lambda)
        return _finite(found, batch)

    def reverse_kl(self, batch: Batch, own: Tensor) -> Tensor:
        """[batch, time]: its estimate from the sampled token, −A_t; to the teacher, also where ExOPD aims beyond it."""
        return _finite(-opd_advantage(batch.teacher_logprobs, self._chosen(batch, own), batch.tokens.mask), batch)

    def _chosen(self, batch: Batch, own: Tensor | None) -> Tensor:
        chosen = batch.sampler_logprobs if self.student_logprobs == "sampler" else own
        if chosen is None:
            raise ValueError("the advantage needs the trainer's log-probs, and nothing recorded them")
        return chosen

    def weights(
        self, batch: Batch, advantages: Tensor, progress: float, measures: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """w_t [batch, time], detached, 0 outside the mask.

        Args:
            progress: share of the training done.
            measures: [batch, time] each, what the scheme asks for.

        Raises:
            ConfigError: the scheme returned something else than finite weights of that shape.
        """
        tokens = batch.tokens
        given = WeightInput(
            advantages,
            tokens.mask,
            tokens.positions,
            tokens.lengths,
            batch.teacher_logprobs,
            progress,
            batch.seeds,
            measures or {},
        )
        return checked_weights(self.weighting, given)

    def kept(self, weights: Tensor, mask: Tensor) -> Tensor:
        """[batch, time]: True for the tokens that the scheme keeps."""
        return mask if self.weighting.keeps_all else mask & (weights != 0)

    def of_whole_batch(
        self, scored: Sequence[ScoredRollout], seeds: Sequence[int], progress: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and advantages of every rollout, made from the whole batch at once; a [time] tensor per rollout each.

        Raises:
            ValueError: see `advantages`.
            NonFiniteError: likewise.
            ConfigError: see `weights`.
        """
        light = [
            replace(each, teacher_hidden=None, teacher_topk_ids=None, teacher_topk_logprobs=None) for each in scored
        ]
        batch = collate(light, seeds)
        advantages = self.advantages(batch, batch.trainer_logprobs)
        weights = self.weights(batch, advantages, progress, batch.trainer_measures)
        counts = batch.tokens.mask.sum(-1).tolist()

        def rows(padded: Tensor) -> list[Tensor]:
            return [row[:count] for row, count in zip(padded, counts, strict=True)]

        return rows(weights), rows(advantages)


def checked_weights(weighting: Weighting, given: WeightInput) -> Tensor:
    """[batch, time] weights of a scheme: finite, detached, 0 outside the mask.

    Raises:
        ConfigError: the scheme returned something else.
    """
    advantages, weights = given.advantages, weighting.weights(given)
    if not isinstance(weights, Tensor) or weights.shape != advantages.shape:
        found = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ConfigError(f"weighting={weighting.name}: returned {found}; return weights {list(advantages.shape)}")
    weights = torch.where(given.mask, weights.detach().to(advantages), torch.zeros_like(advantages))
    if not weights.isfinite().all():
        raise ConfigError(f"weighting={weighting.name}: returned NaN or infinite weights; fix the scheme")
    return weights


def try_weighting(weighting: Weighting) -> Weighting:
    """A scheme, after it has weighed two short responses: mistakes of a user's own show now, not after the first
    rollouts.

    Raises:
        ConfigError: see `checked_weights`; or it cannot be imported, or raises.
    """
    mask = torch.tensor([[True, True, True], [True, True, False]])
    values = torch.full(mask.shape, -0.5) * mask
    measures = dict.fromkeys(weighting.measures, values.abs())
    given = WeightInput(values, mask, torch.arange(3).expand(2, 3), mask.sum(-1), values, 0.0, [0, 1], measures)
    checked_weights(weighting, given)
    return weighting


def check_finite(values: Tensor, what: str, batch: Batch) -> None:
    """Raise NonFiniteError, naming the rollouts, unless all of `values` [batch, time] are finite."""
    if values.isfinite().all():
        return
    rows = (~values.isfinite().all(-1)).nonzero().flatten().tolist()
    names = ", ".join(batch.names[row] for row in rows[:5]) + (", …" if len(rows) > 5 else "")
    raise NonFiniteError(
        f"the {what} is NaN or infinite on {names}; no step was taken: lower optim.lr, or look at these rollouts"
    )


def _finite(advantages: Tensor, batch: Batch) -> Tensor:
    check_finite(advantages, "advantage", batch)
    return advantages
