"""Stage 3: weights, loss, gradients over micro-batches, one optimiser step (or several) per rollout batch."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iwopd.config.training import OVER_VOCABULARY
from iwopd.errors import NonFiniteError, OutOfMemoryError
from iwopd.models.batch import Batch, collate, token_batches
from iwopd.models.evaluation_mode import adapter_dropouts, evaluation_mode
from iwopd.models.student import Student
from iwopd.numerics import chunked_reverse_kl, loss_scale, policy_token_losses
from iwopd.numerics.logprobs import Head
from iwopd.numerics.loss import Normalize
from iwopd.rollout.base import Progress, part_of, silent
from iwopd.seeding import derive_seed
from iwopd.types import ScoredRollout
from iwopd.weighting.base import Weighting, batch_advantages, check_finite, whole_batch_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossSettings:
    """See `iwopd.config.LossConfig`; `student_logprobs` is scoring's."""

    kind: str = "policy_gradient"
    normalize: Normalize = "kept"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    importance_cap: float | None = 5.0
    student_logprobs: str = "trainer"
    exopd_lambda: float = 1.0

    @property
    def over_vocabulary(self) -> bool:
        """See `iwopd.config.training.OVER_VOCABULARY`."""
        return self.kind in OVER_VOCABULARY


@dataclass(frozen=True)
class Forward:
    """What one forward pass says, nats, [batch, time]; for a loss over the vocabulary also the KL, and the teacher's
    log-probs of the tokens over the vocabulary that both models have."""

    logprobs: Tensor
    teacher_logprobs: Tensor
    kl: Tensor | None = None


def needs_trainer_logprobs(weighting: Weighting, loss: LossSettings, updates: int) -> bool:
    """Whether `update` needs log-probs that the trainer recorded before it, because those of its own forward pass would
    come too late: for weights of the whole batch, or after the first of several optimiser steps."""
    return updates > 1 or (weighting.needs_batch and loss.student_logprobs == "trainer")


def update(
    student: Student,
    scored: Sequence[ScoredRollout],
    weighting: Weighting,
    loss: LossSettings,
    *,
    seeds: Sequence[int],
    progress: float = 0.0,
    updates: int = 1,
    teacher_head: Head | None = None,
    advance: Progress = silent,
) -> dict[str, float]:
    """Train the student on one batch of scored rollouts; returns metrics with keys such as ``train/loss``.

    The student computes in evaluation mode: what it says of a token is free of dropout and of a router's noise. Only
    adapters' own dropout (`student.lora.dropout`) is applied, to the pass that gradients flow through and to nothing
    else: A_t, the ratio, the importance correction and the metrics (but ``train/loss``) come from a pass without it.

    Args:
        seeds: the rollouts' own, for schemes that draw at random.
        progress: share of the training done, for annealed schemes.
        updates: optimiser steps, each on an equal share of the batch in its order.
        teacher_head: for losses over the vocabulary.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite; names the rollouts, and the step was not taken.
        OutOfMemoryError: one sequence alone does not fit in the GPU's memory.
        ValueError: several updates without the trainer's log-probs of before the first.
    """
    if updates > 1 and any(record.trainer_logprobs is None for record in scored):
        raise ValueError("several updates per batch need the trainer's log-probs; have score() record them")
    weights = None
    if weighting.needs_batch:
        weights, _ = whole_batch_weights(weighting, scored, seeds, loss.student_logprobs, progress, loss.exopd_lambda)
    share = len(scored) // updates
    sums = Sums()
    norms = []
    for start in range(0, share * updates, share):
        chosen = range(start, start + share)
        step = _Step(student, [scored[i] for i in chosen], weighting, loss, [seeds[i] for i in chosen], progress)
        step.weights = [weights[i] for i in chosen] if weights else None
        step.teacher_head = teacher_head
        try:
            part = step.run(part_of(advance, start // share, updates))
            norms.append(_apply(student, part.denominator, step.scored))
        finally:
            student.clear_gradients()  # frees them, whatever happened
        sums.add(part)
    return {**sums.metrics(), "train/grad_norm": max(norms)}


def _apply(student: Student, denominator: float, scored: Sequence[ScoredRollout]) -> float:
    try:
        return student.apply_gradients(denominator)
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error} (update on rollouts {scored[0].rollout.name} to {scored[-1].rollout.name})"
        ) from error


@dataclass
class Sums:
    """Sums over tokens, of which the metrics are means; they add up over micro-batches."""

    loss: float = 0.0
    denominator: float = 0.0
    tokens: float = 0.0
    advantage: float = 0.0
    abs_advantage: float = 0.0
    reverse_kl: float = 0.0
    sampler_gap: float = 0.0
    weight: float = 0.0
    weight_min: float = float("inf")
    weight_max: float = float("-inf")
    kept: float = 0.0
    clipped: float = 0.0
    clipped_dual: float = 0.0

    def add(self, other: "Sums") -> None:
        for name, value in vars(other).items():
            merge = {"weight_min": min, "weight_max": max}.get(name, lambda a, b: a + b)
            setattr(self, name, merge(getattr(self, name), value))

    def metrics(self) -> dict[str, float]:
        """Means in nats per token; weights, clipping and gaps over the tokens of the windows."""
        count = max(self.tokens, 1.0)
        return {
            "train/loss": self.loss / max(self.denominator, 1.0),
            "train/advantage_mean": self.advantage / count,
            "train/abs_advantage_mean": self.abs_advantage / count,
            "train/reverse_kl": self.reverse_kl / count,
            "train/sampler_gap_mean": self.sampler_gap / count,
            "train/weight_mean": self.weight / count,
            "train/weight_min": self.weight_min,
            "train/weight_max": self.weight_max,
            "train/kept_tokens": self.kept,
            "train/clip_fraction": self.clipped / count,
            "train/clip_fraction_lower": self.clipped_dual / count,
            "tokens/trained": self.tokens,
        }


class _Step:
    """The gradients of one optimiser step, summed over micro-batches."""

    def __init__(
        self,
        student: Student,
        scored: Sequence[ScoredRollout],
        weighting: Weighting,
        loss: LossSettings,
        seeds: Sequence[int],
        progress: float,
    ):
        self.student = student
        self.scored = scored
        self.weighting = weighting
        self.loss = loss
        self.seeds = seeds
        self.progress = progress
        self.dropouts = adapter_dropouts(student.model)
        self.weights: list[Tensor] | None = None
        self.teacher_head: Head | None = None

    def run(self, advance: Progress) -> Sums:
        """Forward and backward over all micro-batches. Out of GPU memory, it starts again with micro-batches half as
        large: gradients of the failed one may be partly there, so they are all made anew."""
        while True:
            try:
                return self._accumulate(advance)
            except torch.OutOfMemoryError:
                pass  # the failed pass is freed only behind this block
            self._halve()

    def _halve(self) -> None:
        student = self.student
        student.clear_gradients()
        lengths = self._lengths()
        groups = token_batches(lengths, student.micro_batch_tokens)
        shared = [lengths[group[0]] * len(group) for group in groups if len(group) > 1]
        if not shared:
            raise OutOfMemoryError(
                f"one sequence of {max(lengths)} tokens does not fit in the GPU's memory; use "
                "student.gradient_checkpointing=true, optim.autocast=true, a smaller rollout.max_tokens or LoRA"
            )
        student.micro_batch_tokens = max(shared) // 2
        log.warning("out of GPU memory: going on with optim.micro_batch_tokens=%d", student.micro_batch_tokens)
        torch.cuda.empty_cache()

    def _lengths(self) -> list[int]:
        return [len(record.rollout.prompt_ids) + record.stop for record in self.scored]

    def _accumulate(self, advance: Progress) -> Sums:
        student, sums, done, lengths = self.student, Sums(), list[int](), self._lengths()
        # The adapters' dropout depends on the update alone: a resumed run draws as the first one did.
        torch.manual_seed(derive_seed("dropout", student.updates, *self.seeds[:1]))
        with evaluation_mode(student.model):
            for group in token_batches(lengths, student.micro_batch_tokens):
                batch = collate([self.scored[i] for i in group], [self.seeds[i] for i in group], device=student.device)
                weights = None
                if self.weights is not None:
                    weights = pad_sequence([self.weights[i] for i in group], batch_first=True).to(student.device)
                sums.add(self._micro_batch(batch, weights))
                done += [lengths[i] for i in group]
                advance(len(done), len(lengths), sum(done), sum(lengths))
        return sums

    def _micro_batch(self, batch: Batch, weights: Tensor | None) -> Sums:
        """Forward and backward of Σ scale · loss, to be divided by the batch's whole denominator afterwards."""
        loss, mask = self.loss, batch.tokens.mask
        trained, exact = self._forwards(batch)
        check_finite(exact.logprobs.detach(), "student's log-prob", batch)
        batch = replace(batch, teacher_logprobs=exact.teacher_logprobs)
        now = exact.logprobs.detach()
        old = now if batch.trainer_logprobs is None else batch.trainer_logprobs
        advantages = batch_advantages(batch, old, loss.student_logprobs, loss.exopd_lambda)
        if weights is None:
            weights = self.weighting.weights(batch, advantages, self.progress)
        if trained.kl is None:
            tokens = policy_token_losses(
                now + (trained.logprobs - trained.logprobs.detach()),  # the value without dropout, the gradient with it
                old,
                weights * advantages,
                mask,
                sampler_logprobs=None if loss.importance_cap is None else batch.sampler_logprobs,
                clip_low=loss.clip_low,
                clip_high=loss.clip_high,
                dual_clip=loss.dual_clip,
                importance_cap=loss.importance_cap or 1.0,
            )
            losses, clipped, clipped_dual = tokens.losses, tokens.clipped, tokens.clipped_dual
        else:
            losses = weights * trained.kl
            clipped = clipped_dual = torch.zeros_like(mask)
        kept = self.weighting.kept(weights, mask)
        scale, denominator = loss_scale(weights, mask, batch.tokens.lengths, loss.normalize, kept)
        total = (losses * scale).sum()
        check_finite(losses.detach(), "loss", batch)
        total.backward()

        inside = weights[mask]
        gaps = (old - batch.sampler_logprobs).abs()[mask]
        # To the teacher, also where ExOPD aims beyond it.
        reverse_kl = -batch_advantages(batch, old, loss.student_logprobs) if exact.kl is None else exact.kl.detach()
        totals = [
            total.detach(), mask.sum(), advantages.sum(), advantages.abs().sum(), reverse_kl[mask].sum(), gaps.sum(),
            inside.sum(), inside.min(), inside.max(), kept.sum(), clipped.sum(), clipped_dual.sum(),
        ]  # fmt: skip
        first, *rest = torch.stack([value.float() for value in totals]).tolist()
        return Sums(first, denominator, *rest)

    def _forwards(self, batch: Batch) -> tuple[Forward, Forward]:
        """The pass that gradients flow through, and the same one without dropout; without adapters that have any, one
        pass is both."""
        if not self.dropouts:
            only = self._forward(batch)
            return only, only
        for each in self.dropouts:
            each.eval()
        with torch.no_grad():
            exact = self._forward(batch)
        for each in self.dropouts:
            each.train()  # in backward, too, where checkpointed layers are computed again
        return self._forward(batch), exact

    def _forward(self, batch: Batch) -> Forward:
        """For a loss over the vocabulary, both models' log-probs are over what they share, so that A_t and the KL speak
        of the same distributions."""
        lm, tokens = self.student.lm, batch.tokens
        if not self.loss.over_vocabulary:
            return Forward(tokens.spread(lm.token_logprobs(tokens)), batch.teacher_logprobs)
        assert batch.teacher_hidden is not None, "score() keeps hidden states for losses over the vocabulary"
        assert self.teacher_head is not None, "update() is given the teacher's head for losses over the vocabulary"
        with lm.autocast():
            scores = chunked_reverse_kl(
                lm.states(tokens), batch.teacher_hidden, tokens.targets, lm.head, self.teacher_head, lm.chunk
            )
        return Forward(*(tokens.spread(flat) for flat in (scores.logprobs, scores.teacher_logprobs, scores.reverse_kl)))
