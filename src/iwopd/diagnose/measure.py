"""The numbers: rollouts of a student, scored by both models, and summed up by position."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iwopd.diagnose.records import BINS, POINTS, QUANTILES, LogRatio, Spending, Values
from iwopd.errors import NonFiniteError
from iwopd.models.batch import collate
from iwopd.models.language_model import LanguageModel
from iwopd.models.packing import token_batches
from iwopd.models.readouts import measured_against
from iwopd.numerics import Head, comparison_measures
from iwopd.numerics.divergence import MEASURES
from iwopd.numerics.position import (
    absolute_bins,
    binned_mean,
    binned_sum,
    effective_sample_size,
    prefix_log_ratios,
    relative_bins,
    shares,
)
from iwopd.rollout.base import Progress, no_progress
from iwopd.scoring.base import Teacher
from iwopd.seeding import derive_seed
from iwopd.training.objective import Objective
from iwopd.types import Rollout, ScoredRollout, Tokenizer, as_logprobs
from iwopd.weighting import Weighting

POSITIONS = 100  # bins of absolute position, at most


@dataclass(frozen=True)
class Measured:
    """Every rollout scored by both models.

    Attributes:
        records: with the teacher's and the student's log-probs of every response token.
        mask: [rollouts, time].
        advantages: [rollouts, time], nats.
        quantities: see `Diagnosis.mean`; [rollouts, time] each.
    """

    records: list[ScoredRollout]
    mask: Tensor
    advantages: Tensor
    quantities: dict[str, Tensor]


def measure(
    lm: LanguageModel,
    teacher: Teacher,
    rollouts: Sequence[Rollout],
    *,
    objective: Objective,
    top_k: int,
    batch_tokens: int,
    progress: Progress = no_progress,
) -> Measured:
    """Score rollouts with teacher and student.

    Args:
        objective: its signal is what the teacher gives; beyond the sampled one, distributions are compared.
        top_k: size of the sets of most likely tokens.
        batch_tokens: tokens per forward pass, padding included.

    Raises:
        NonFiniteError: a log-prob is NaN or infinite.
    """
    scored = teacher.score(rollouts, lambda length: (0, length), signal=objective.signal)
    heads = teacher.heads() if objective.signal.kind == "full" else {}
    rows: dict[int, dict[str, Tensor]] = {}
    lm.model.eval()
    for group in token_batches([len(item.prompt_ids) + len(item.response_ids) for item in rollouts], batch_tokens):
        found = _compare(lm, heads, [scored[index] for index in group], objective, top_k)
        for place, index in enumerate(group):
            rows[index] = {name: values[place] for name, values in found.items()}
        progress(len(rows), len(rollouts))
    ordered = [rows[index] for index in range(len(rollouts))]
    padded = {name: pad_sequence([row[name] for row in ordered], batch_first=True) for name in ordered[0]}
    lengths = torch.tensor([len(rollout.response_ids) for rollout in rollouts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    advantages = padded["teacher_logprobs"] - padded["logprobs"]
    if not advantages[mask].isfinite().all():
        raise NonFiniteError(f"the {lm.name}'s log-probs of its own rollouts are NaN or infinite; its weights diverged")
    sampler = pad_sequence([torch.tensor(rollout.sampler_logprobs) for rollout in rollouts], batch_first=True)
    quantities = {
        "abs_advantage": advantages.abs(),
        "reverse_kl": padded.get("reverse_kl", -advantages),
        "sampler_gap": (padded["logprobs"] - sampler).abs(),
        **{name: padded[name] for name in ("entropy", "teacher_entropy", "overlap") if name in padded},
    }
    return Measured(list(map(_with_logprobs, scored, ordered)), mask, advantages, quantities)


def _with_logprobs(record: ScoredRollout, row: Mapping[str, Tensor]) -> ScoredRollout:
    """With both models' log-probs, and without what they were computed from."""
    return replace(
        record,
        teacher_logprobs=as_logprobs(row["teacher_logprobs"].numpy()),
        trainer_logprobs=as_logprobs(row["logprobs"].numpy()),
        trainer_measures={name: as_logprobs(row[name].numpy()) for name in MEASURES if name in row},
        teacher_topk_ids=None,
        teacher_topk_logprobs=None,
        teacher_hidden=None,
    )


@torch.no_grad()
def _compare(
    lm: LanguageModel, heads: Mapping[str, Head], scored: Sequence[ScoredRollout], objective: Objective, top_k: int
) -> dict[str, list[Tensor]]:
    """Values of each token, a tensor per rollout."""
    batch = collate(scored, seeds=range(len(scored)), device=lm.device)
    tokens = batch.tokens
    if objective.signal.kind == "sampled":
        flat = {"logprobs": lm.token_logprobs(tokens), "teacher_logprobs": batch.teacher_logprobs[tokens.mask]}
    else:
        flat = lm(tokens, measured_against(objective.signals(batch, heads), {}, comparison_measures(top_k)))
    return {name: tokens.to_rows(values.float().cpu()) for name, values in flat.items()}


def by_position(measured: Measured) -> dict[str, Any]:
    """Fields mean, relative, width, absolute, counts and share of a `Diagnosis`."""
    mask, quantities = measured.mask, measured.quantities
    longest = mask.shape[-1]
    width = math.ceil(longest / POSITIONS)
    tenths, places, count = relative_bins(mask, BINS), absolute_bins(mask, width), math.ceil(longest / width)
    ones = torch.ones_like(measured.advantages)
    return {
        "mean": {name: values[mask].double().mean().item() for name, values in quantities.items()},
        "relative": {name: plain(binned_mean(values, tenths, mask, BINS)) for name, values in quantities.items()},
        "width": width,
        "absolute": {name: plain(binned_mean(values, places, mask, count)) for name, values in quantities.items()},
        "counts": [int(value) for value in binned_sum(ones, places, mask, count).tolist()],
        "share": {
            name: plain(shares(binned_sum(quantities[name], tenths, mask, BINS)))
            for name in ("abs_advantage", "reverse_kl")
        },
    }


def log_ratio(measured: Measured, tokenizer: Tokenizer, examples: int) -> LogRatio:
    """The prefix log-ratio along the rollouts."""
    ratios = prefix_log_ratios(measured.advantages, measured.mask, POINTS)
    at = ratios.quantile(torch.tensor(QUANTILES, dtype=ratios.dtype), dim=0)
    shown = []
    for record, advantages in zip(measured.records[:examples], measured.advantages, strict=False):
        ids = record.rollout.response_ids.tolist()
        running = advantages[: len(ids)].double().cumsum(-1).tolist()
        shown.append(
            {
                "rollout": record.rollout.name,
                "tokens": [tokenizer.decode([token]) for token in ids],
                "log_ratio": [round(value, 5) for value in running],
            }
        )
    quantiles = {f"{quantile:g}": row.tolist() for quantile, row in zip(QUANTILES, at, strict=True)}
    return LogRatio(ratios.mean(0).tolist(), quantiles, shown)


def spending(measured: Measured, schemes: Mapping[str, Weighting]) -> dict[str, Spending]:
    """How each scheme would spend its weight on these rollouts at the first step of a training."""
    mask, tenths = measured.mask, relative_bins(measured.mask, BINS)
    seeds = [derive_seed("diagnose", record.rollout.name) for record in measured.records]
    found = {}
    for name, scheme in schemes.items():
        rows, _ = Objective(scheme).of_whole_batch(measured.records, seeds, progress=0.0)
        weights = pad_sequence(rows, batch_first=True)
        advantages = measured.advantages if scheme.advantage is None else torch.full_like(weights, scheme.advantage)
        found[name] = Spending(
            weight=shares(binned_sum(weights.abs(), tenths, mask, BINS)).tolist(),
            advantage=shares(binned_sum((weights * advantages).abs(), tenths, mask, BINS)).tolist(),
            effective_sample_size=effective_sample_size(weights, mask),
        )
    return found


def plain(values: Tensor) -> Values:
    """A list for JSON, which knows no NaN."""
    return [value if math.isfinite(value) else None for value in values.tolist()]
