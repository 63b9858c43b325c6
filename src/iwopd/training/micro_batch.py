"""One micro-batch: the student's forward pass, w_t · ℓ_t, and backward."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from iwopd.errors import IwopdError
from iwopd.models.batch import Batch, Tokens
from iwopd.models.language_model import LanguageModel
from iwopd.models.readouts import measured_against
from iwopd.numerics import Head, LossInput, loss_scale
from iwopd.numerics.loss import importance_correction
from iwopd.training.objective import Objective, check_finite
from iwopd.training.sums import Sums

Made = TypeVar("Made")
# What one forward pass says, [batch, time] each, by name: "logprobs" and "teacher_logprobs" of the sampled tokens,
# nats; beyond the sampled signal among the tokens that both models have, so that A_t and divergences compare the same
# distributions, and with "reverse_kl" and what loss and weighting ask for.
Forward = Mapping[str, Tensor]


def train_on(
    lm: LanguageModel,
    batch: Batch,
    objective: Objective,
    *,
    weights: Tensor | None,
    progress: float,
    teacher_heads: Mapping[str, Head],
    dropouts: Sequence[nn.Module],
) -> Sums:
    """Add the gradient of Σ scale · loss, to be divided by the batch's whole denominator afterwards.

    Args:
        weights: [batch, time], of a scheme that saw the whole batch; None to make them here.
        teacher_heads: for the signal "full", by teacher.
        dropouts: the adapters', applied to the pass that gradients flow through and to no other.

    Raises:
        NonFiniteError: a log-prob, an advantage or the loss is NaN or infinite; names the rollouts.
    """
    trained, exact = _passes(dropouts, lambda: _forward(lm, batch, objective, teacher_heads))
    try:
        total, sums = _loss(batch, objective, trained, exact, weights, progress)
    except IwopdError:  # other processes may be waiting for this one's share of the backward pass
        _without_loss(next(each for each in trained.values() if each.requires_grad))
        raise
    total.backward()
    return sums


def take_part(lm: LanguageModel, tokens: Tokens, dropouts: Sequence[nn.Module]) -> None:
    """The passes of `train_on` without any loss: for a process that has no micro-batch while others have."""
    trained, _ = _passes(dropouts, lambda: lm.token_logprobs(tokens))
    _without_loss(trained)


def _without_loss(values: Tensor) -> None:
    torch.where(torch.zeros_like(values, dtype=torch.bool), values, 0.0).sum().backward()  # 0 · inf would be NaN


def _loss(
    batch: Batch, objective: Objective, trained: Forward, exact: Forward, weights: Tensor | None, progress: float
) -> tuple[Tensor, Sums]:
    """Σ scale · loss, and the sums for the metrics.

    Raises:
        NonFiniteError: see `train_on`.
    """
    check_finite(exact["logprobs"].detach(), "student's log-prob", batch)
    batch = replace(batch, teacher_logprobs=exact["teacher_logprobs"])
    given = _loss_input(batch, objective, trained, exact, weights, progress)
    found, mask = objective.loss.token_losses(given), given.mask
    kept = objective.kept(given.weights, mask)
    normalize: Any = objective.loss.normalize  # its choices are checked by the schema
    scale, denominator = loss_scale(given.weights, mask, batch.tokens.lengths, normalize, kept)
    total = (found.losses * scale).sum()
    check_finite(found.losses.detach(), "loss", batch)
    reverse_kl = exact["reverse_kl"] if "reverse_kl" in exact else objective.reverse_kl(batch, given.old_logprobs)
    inside, cap = given.weights[mask], objective.loss.importance_cap or math.inf
    ratio = importance_correction(given.old_logprobs, batch.sampler_logprobs, cap)[mask]
    return total, _sums(
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
        ratio=ratio.sum(),
        capped=(ratio >= cap).sum(),
    )


def _loss_input(
    batch: Batch, objective: Objective, trained: Forward, exact: Forward, weights: Tensor | None, progress: float
) -> LossInput:
    """A_t, w_t and the log-probs they belong to; `exact` is the pass without dropout."""
    now = exact["logprobs"].detach()
    old = now if batch.trainer_logprobs is None else batch.trainer_logprobs
    advantages = objective.advantages(batch, old)
    if weights is None:
        weights = objective.weights(batch, advantages, progress, batch.trainer_measures or exact)
    fixed = objective.weighting.advantage
    return LossInput(
        logprobs=now + (trained["logprobs"] - trained["logprobs"].detach()),  # dropout's gradient, not its value
        old_logprobs=old,
        sampler_logprobs=batch.sampler_logprobs,
        advantages=advantages if fixed is None else fixed * batch.tokens.mask.to(advantages),
        weights=weights,
        mask=batch.tokens.mask,
        divergence=trained.get("divergence"),
        gated=trained.get("gated"),
        baseline=exact.get("baseline"),
        reward=batch.reward,
    )


def _sums(denominator: float, **totals: Tensor) -> Sums:
    """From the device in one go."""
    numbers = torch.stack([value.float() for value in totals.values()]).tolist()
    return Sums(denominator=denominator, **dict(zip(totals, numbers, strict=True)))


def _passes(dropouts: Sequence[nn.Module], forward: Callable[[], Made]) -> tuple[Made, Made]:
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


def _forward(lm: LanguageModel, batch: Batch, objective: Objective, teacher_heads: Mapping[str, Head]) -> Forward:
    tokens = batch.tokens
    if objective.signal.kind == "sampled":
        return {"logprobs": tokens.to_padded(lm.token_logprobs(tokens)), "teacher_logprobs": batch.teacher_logprobs}
    found = lm(tokens, measured_against(objective.signals(batch, teacher_heads), *objective.measures()))
    return {name: tokens.to_padded(flat) for name, flat in found.items()}
