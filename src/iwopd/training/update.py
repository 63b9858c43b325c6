"""Stage 3: weights, loss, gradients over micro-batches, one optimiser step (or several) per rollout batch."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from iwopd.errors import NonFiniteError, OutOfMemoryError
from iwopd.models.batch import Batch, collate
from iwopd.models.evaluation_mode import adapter_dropouts, evaluation_mode
from iwopd.models.language_model import LanguageModel
from iwopd.models.packing import Packing
from iwopd.models.seeded_dropout import SeededDropout
from iwopd.models.sharding import is_sharded, kept_gathered
from iwopd.models.shared_prompts import can_share
from iwopd.models.student import Student
from iwopd.numerics import Head
from iwopd.parallel import world
from iwopd.parallel.deal import limit_for
from iwopd.rollout.base import Progress, no_progress, part_of
from iwopd.seeding import derive_seed
from iwopd.training.micro_batch import take_part, train_on
from iwopd.training.objective import Objective
from iwopd.training.sums import Sums
from iwopd.types import ScoredRollout

log = logging.getLogger(__name__)


def update(
    student: Student,
    scored: Sequence[ScoredRollout],
    objective: Objective,
    *,
    seeds: Sequence[int],
    progress: float = 0.0,
    updates: int = 1,
    teacher_heads: Mapping[str, Head] | None = None,
    advance: Progress = no_progress,
) -> dict[str, float]:
    """Train the student on one batch of scored rollouts; returns metrics with keys such as ``train/loss``.

    The student computes in evaluation mode: what it says of a token is free of dropout and of a router's noise. Only
    adapters' own dropout (`student.lora.dropout`) is applied, to the pass that gradients flow through and to nothing
    else: A_t, the ratio, the importance correction and the metrics (but ``train/loss``) come from a pass without it.

    Args:
        seeds: the rollouts' own, for schemes that draw at random.
        progress: share of the training done, for annealed schemes.
        updates: optimiser steps, each on an equal share of the batch in its order.
        teacher_heads: for the signal "full", by teacher; see `Teacher.heads`.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite; names the rollouts, and the step was not taken.
        OutOfMemoryError: one sequence alone does not fit in the GPU's memory.
        ValueError: several updates without the trainer's log-probs of before the first.
    """
    if updates > 1 and any(record.trainer_logprobs is None for record in scored):
        raise ValueError("several updates per batch need the trainer's log-probs; have score() record them")
    weights = None
    if objective.weighting.needs_batch:
        weights, _ = objective.of_whole_batch(scored, seeds, progress)
    share = len(scored) // updates
    sums = Sums()
    norms = []
    for start in range(0, share * updates, share):
        chosen = slice(start, start + share)
        own = weights and weights[chosen]
        part = _Share(student, scored[chosen], objective, seeds[chosen], own, progress, teacher_heads or {})
        try:
            found = part.backward(part_of(advance, start // share, updates))
            norms.append(_apply(student, found.denominator, part.scored))
        finally:
            student.clear_gradients()  # frees them, whatever happened
        sums.add(found)
    return {**sums.metrics(), "train/grad_norm": max(norms)}


def cast_once(lm: LanguageModel, dropouts: Sequence[nn.Module]) -> AbstractContextManager[Any]:
    """Weights that autocast has cast stay so while the block lasts, from one micro-batch to the next.

    Not where a pass without gradients comes first, for autocast would keep casts that no gradient flows through; and
    not where weights are gathered in between.
    """
    return nullcontext() if dropouts or is_sharded(lm) else lm.autocast()


def _apply(student: Student, denominator: float, scored: Sequence[ScoredRollout]) -> float:
    try:
        return student.apply_gradients(denominator)
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error} (update on rollouts {scored[0].rollout.name} to {scored[-1].rollout.name})"
        ) from error


@dataclass(frozen=True)
class _Share:
    """The rollouts of one optimiser step."""

    student: Student
    scored: Sequence[ScoredRollout]
    objective: Objective
    seeds: Sequence[int]
    weights: list[Tensor] | None
    progress: float
    teacher_heads: Mapping[str, Head]

    def backward(self, advance: Progress) -> Sums:
        """Forward and backward over all micro-batches. Out of GPU memory, it starts again with micro-batches half as
        large: gradients of the failed one may be partly there, so they are all made anew. (Several processes stop
        instead: the others are in the midst of a pass that this one cannot take part in any more.)"""
        while True:
            try:
                return self._accumulate(advance)
            except torch.OutOfMemoryError:
                pass  # the failed pass is freed only after this block
            self._halve()

    def _halve(self) -> None:
        student, packing = self.student, self._packing()
        student.clear_gradients()
        half = packing.halved(self._limit(packing))
        if not half:
            raise OutOfMemoryError(
                f"one sequence of {max(packing.lengths)} tokens does not fit in the GPU's memory; use "
                "student.gradient_checkpointing=true, optim.autocast=true, a smaller rollout.max_tokens or LoRA"
            )
        if world().size > 1:
            raise OutOfMemoryError(
                f"optim.micro_batch_tokens={student.micro_batch_tokens}: the GPU's memory is full; resume with "
                f"optim.micro_batch_tokens={half}"
            )
        student.micro_batch_tokens = half
        log.warning("out of GPU memory: continuing with optim.micro_batch_tokens=%d", student.micro_batch_tokens)
        torch.cuda.empty_cache()

    def _packing(self) -> Packing:
        student = self.student
        # Adapters' dropout is a response's own, also where it reads the prompt.
        share = student.share_prompts and not adapter_dropouts(student.model) and can_share(student.lm)
        return Packing.of([each.rollout for each in self.scored], [each.stop for each in self.scored], share=share)

    def _limit(self, packing: Packing) -> int:
        return limit_for(self.student.micro_batch_tokens, packing.tokens, world().size)

    def _accumulate(self, advance: Progress) -> Sums:
        student, own, done, packing = self.student, Sums(), list[int](), self._packing()
        dropout, lengths = SeededDropout(adapter_dropouts(student.model)), packing.lengths

        def collated(group: list[int]) -> Batch:
            # The adapters' dropout depends on the update and the rollout alone.
            dropout.seeds = [derive_seed("dropout", student.updates, self.seeds[i]) for i in group]
            scored, seeds = [self.scored[i] for i in group], [self.seeds[i] for i in group]
            return collate(scored, seeds, device=student.device, share=packing.shared)

        def micro_batch(group: list[int]) -> None:
            batch = collated(group)
            weights = None
            if self.weights is not None:
                weights = pad_sequence([self.weights[i] for i in group], batch_first=True).to(student.device)
            own.add(
                train_on(
                    student.lm,
                    batch,
                    self.objective,
                    weights=weights,
                    progress=self.progress,
                    teacher_heads=self.teacher_heads,
                    dropouts=dropout.layers,
                )
            )
            done.extend(lengths[i] for i in group)
            advance(len(done), len(lengths), sum(done), sum(lengths))

        def idle() -> None:
            shortest = lengths.index(min(lengths))
            take_part(student.lm, collated([shortest]).tokens, dropout.layers)

        with (
            evaluation_mode(student.model),
            dropout,
            kept_gathered(student.lm, keep=not student.reshard),
            cast_once(student.lm, dropout.layers),
        ):
            world().passes(packing.groups(self._limit(packing)), lengths, micro_batch, idle)
        total = Sums()
        for part in world().gather(own):  # in the order of ranks, in float64: the same numbers on all
            total.add(part)
        return total
