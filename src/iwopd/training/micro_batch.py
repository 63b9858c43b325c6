"""One micro-batch: the student's forward pass, w_t · ℓ_t, and backward."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from iwopd.models.batch import Batch
from iwopd.models.language_model import LanguageModel
from iwopd.models.readouts import divergence_from
from iwopd.numerics import Head, LossInput, loss_scale
from iwopd.training.objective import Objective, check_finite
from iwopd.training.sums import Sums


@dataclass(frozen=True)
class Forward:
    """What one forward pass says, nats, [batch, time].

    Attributes:
        logprobs, teacher_logprobs: of the sampled tokens; for a loss over the vocabulary, among the tokens that both
            models have, so that A_t and the divergence compare the same distributions.
        divergence, reverse_kl: of a loss over the vocabulary.
    """

    logprobs: Tensor
    teacher_logprobs: Tensor
    divergence: Tensor | None = None
    reverse_kl: Tensor | None = None


def train_on(
    lm: LanguageModel,
    batch: Batch,
    objective: Objective,
    *,
    weights: Tensor | None,
    progress: float,
    teacher_head: Head | None,
    dropouts: list[nn.Module],
) -> Sums:
    """Add the gradient of Σ scale · loss, to be divided by the batch's whole denominator afterwards.

    Args:
        weights: [batch, time], of a scheme that saw the whole batch; None to make them here.
        dropouts: the adapters', applied to the pass that gradients flow through and to no other.

    Raises:
        NonFiniteError: a log-prob, an advantage or the loss is NaN or infinite; names the rollouts.
    """
    trained, exact = _passes(dropouts, lambda: _forward(lm, batch, objective, teacher_head))
    check_finite(exact.logprobs.detach(), "student's log-prob", batch)
    batch = replace(batch, teacher_logprobs=exact.teacher_logprobs)
    given = _loss_input(batch, objective, trained, exact.logprobs.detach(), weights, progress)
    found, mask = objective.loss.token_losses(given), given.mask
    kept = objective.kept(given.weights, mask)
    normalize: Any = objective.loss.normalize  # its choices are checked by the schema
    scale, denominator = loss_scale(given.weights, mask, batch.tokens.lengths, normalize, kept)
    total = (found.losses * scale).sum()
    check_finite(found.losses.detach(), "loss", batch)
    total.backward()

    reverse_kl = objective.reverse_kl(batch, given.old_logprobs) if exact.reverse_kl is None else exact.reverse_kl
    inside = given.weights[mask]
    return _sums(
        denominator,
        loss=total.detach(),
        tokens=mask.sum(),
        advantage=given.advantages.sum(),
        abs_advantage=given.advantages.abs().sum(),
        reverse_kl=reverse_kl[mask].sum(),
        sampler_gap=(given.old_logprobs - batch.sampler_logprobs).abs()[mask].sum(),
        weight=inside.sum(),
        weight_min=inside.min(),
        weight_max=inside.max(),
        kept=kept.sum(),
        clipped=found.clipped.sum(),
        clipped_dual=found.clipped_dual.sum(),
    )


def _loss_input(
    batch: Batch, objective: Objective, trained: Forward, now: Tensor, weights: Tensor | None, progress: float
) -> LossInput:
    """A_t, w_t and the log-probs they belong to; `now` are the student's without dropout."""
    old = now if batch.trainer_logprobs is None else batch.trainer_logprobs
    advantages = objective.advantages(batch, old)
    return LossInput(
        logprobs=now + (trained.logprobs - trained.logprobs.detach()),  # dropout's gradient, not its value
        old_logprobs=old,
        sampler_logprobs=batch.sampler_logprobs,
        advantages=advantages,
        weights=objective.weights(batch, advantages, progress) if weights is None else weights,
        mask=batch.tokens.mask,
        divergence=trained.divergence,
    )


def _sums(denominator: float, **totals: Tensor) -> Sums:
    """From the device in one go."""
    numbers = torch.stack([value.float() for value in totals.values()]).tolist()
    return Sums(denominator=denominator, **dict(zip(totals, numbers, strict=True)))


def _passes(dropouts: list[nn.Module], forward: Callable[[], Forward]) -> tuple[Forward, Forward]:
    """The pass that gradients flow through, and the same one without dropout; without any, one pass is both."""
    if not dropouts:
        only = forward()
        return only, only
    for each in dropouts:
        each.eval()
    with torch.no_grad():
        exact = forward()
    for each in dropouts:
        each.train()  # in backward, too, where checkpointed layers are computed again
    return forward(), exact


def _forward(lm: LanguageModel, batch: Batch, objective: Objective, teacher_head: Head | None) -> Forward:
    tokens, loss = batch.tokens, objective.loss
    if loss.signal == "sampled":
        return Forward(tokens.to_padded(lm.token_logprobs(tokens)), batch.teacher_logprobs)
    assert batch.teacher_hidden is not None, "score() keeps hidden states for losses over the vocabulary"
    assert teacher_head is not None, "update() is given the teacher's head for losses over the vocabulary"
    scores = lm(tokens, divergence_from(batch.teacher_hidden, teacher_head, loss.divergence()))
    return Forward(**{name: tokens.to_padded(flat) for name, flat in scores._asdict().items()})
