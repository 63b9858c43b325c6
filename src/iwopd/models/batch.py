"""From ragged records to tensors, and the only place where tokens are shifted.

A model's hidden state at column c predicts the token at column c + 1. `collate_tokens` turns "the state that predicts
response token t" into coordinates once, so that everything else indexes by response token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy
import torch
from torch import Tensor

from iwopd.types import Logprobs, Rollout, ScoredRollout

Window = Callable[[int], tuple[int, int]]


@dataclass(frozen=True)
class Tokens:
    """Prompts and responses, cut behind each response's window, as a model's input.

    Attributes:
        input_ids: [batch, columns], padded.
        attention_mask: [batch, columns], or None where padding stands on the right: attention is causal, so no real
            token sees it, and attention without a mask takes the fast kernels.
        position_ids: [batch, columns], or None likewise.
        rows, columns: [tokens], where the hidden states stand that predict the windows' tokens, row by row.
        targets: [tokens], the ids of those tokens.
        mask: [batch, time], True for them in the layout of log-probs and weights: time counts from the window's start.
        positions: [batch, time], their index within the whole response.
        lengths: [batch], tokens of the whole responses.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    rows: Tensor
    columns: Tensor
    targets: Tensor
    mask: Tensor
    positions: Tensor
    lengths: Tensor

    def to_padded(self, flat: Tensor) -> Tensor:
        """[tokens] to [batch, time], 0 outside the mask; gradients flow through."""
        return flat.new_zeros(self.mask.shape).masked_scatter(self.mask, flat)

    def to_rows(self, flat: Tensor) -> list[Tensor]:
        """[tokens, ...] to one tensor per row."""
        return list(flat.split(self.mask.sum(-1).tolist()))


@dataclass(frozen=True)
class Batch:
    """A micro-batch of scored rollouts: `tokens`, and log-probs in nats as [batch, time].

    Attributes:
        trainer_measures: [batch, time] each, by name.
        teacher_topk_ids, teacher_topk_logprobs: [tokens, k].
        teacher_hidden: by teacher, [its tokens, hidden].
        teachers: of each row.
    """

    tokens: Tokens
    sampler_logprobs: Tensor
    teacher_logprobs: Tensor
    trainer_logprobs: Tensor | None
    base_logprobs: Tensor | None
    trainer_measures: dict[str, Tensor] | None
    teacher_topk_ids: Tensor | None
    teacher_topk_logprobs: Tensor | None
    teacher_hidden: dict[str, Tensor] | None
    teachers: list[str]
    seeds: list[int]
    names: list[str]

    def places_of(self, teacher: str) -> Tensor | None:
        """[its tokens]: the indices, among all tokens, of those whose rows a teacher scored; None where it is all."""
        own = [each == teacher for each in self.teachers]
        return None if all(own) else torch.tensor(own, device=self.tokens.rows.device)[self.tokens.rows].nonzero()[:, 0]


def collate_tokens(
    rollouts: Sequence[Rollout],
    windows: Sequence[tuple[int, int]],
    *,
    device: torch.device | str = "cpu",
    padding: Literal["right", "left"] = "right",
) -> Tokens:
    """Pad `rollouts`, each cut behind its window ``[start, stop)`` of response tokens, into one input.

    The last token of a window is predicted, never read, so it is not part of the input.
    """
    sizes = [len(rollout.prompt_ids) + stop - 1 for rollout, (_, stop) in zip(rollouts, windows, strict=True)]
    width, time = max(sizes), max(stop - start for start, stop in windows)
    input_ids = torch.zeros(len(sizes), width, dtype=torch.long)
    attention_mask = torch.zeros(len(sizes), width, dtype=torch.long) if padding == "left" else None
    mask = torch.zeros(len(sizes), time, dtype=torch.bool)
    rows, columns, targets = [], [], []
    for row, (size, rollout, (start, stop)) in enumerate(zip(sizes, rollouts, windows, strict=True)):
        pad = width - size if padding == "left" else 0
        input_ids[row, pad : pad + size] = torch.from_numpy(rollout.ids(stop)[:-1])
        if attention_mask is not None:
            attention_mask[row, pad:] = 1
        mask[row, : stop - start] = True
        # The state that predicts response token t stands one column before that token.
        first = pad + len(rollout.prompt_ids) + start - 1
        rows.append(torch.full((stop - start,), row))
        columns.append(torch.arange(first, first + stop - start))
        targets.append(rollout.response_ids[start:stop])
    return Tokens(
        input_ids=input_ids.to(device),
        attention_mask=None if attention_mask is None else attention_mask.to(device),
        position_ids=None if attention_mask is None else (attention_mask.cumsum(-1) - 1).clamp(min=0).to(device),
        rows=torch.cat(rows).to(device),
        columns=torch.cat(columns).to(device),
        targets=torch.from_numpy(numpy.concatenate(targets)).long().to(device),
        mask=mask.to(device),
        positions=(torch.tensor([start for start, _ in windows])[:, None] + torch.arange(time)).to(device),
        lengths=torch.tensor([len(rollout.response_ids) for rollout in rollouts], device=device),
    )


def collate(
    scored: Sequence[ScoredRollout],
    seeds: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    padding: Literal["right", "left"] = "right",
) -> Batch:
    """One micro-batch. `seeds` are the rollouts' own, for schemes that draw at random."""
    windows = [(record.start, record.stop) for record in scored]
    tokens = collate_tokens([record.rollout for record in scored], windows, device=device, padding=padding)

    def spread(rows: list[Logprobs]) -> Tensor:
        return tokens.to_padded(torch.from_numpy(numpy.concatenate(rows)).to(device))

    def together(name: str) -> Tensor | None:
        rows = [getattr(record, name) for record in scored if getattr(record, name) is not None]
        return torch.from_numpy(numpy.concatenate(rows)).to(device) if rows else None

    def optional(name: str) -> Tensor | None:
        flat = together(name)
        return None if flat is None else tokens.to_padded(flat)

    measures = [record.trainer_measures for record in scored if record.trainer_measures is not None]
    hidden = {
        name: torch.cat(states).to(device)
        for name in dict.fromkeys(record.teacher for record in scored)
        if (
            states := [
                each.teacher_hidden for each in scored if each.teacher == name and each.teacher_hidden is not None
            ]
        )
    }
    return Batch(
        tokens=tokens,
        sampler_logprobs=spread([record.rollout.sampler_logprobs[record.start : record.stop] for record in scored]),
        teacher_logprobs=spread([record.teacher_logprobs for record in scored]),
        trainer_logprobs=optional("trainer_logprobs"),
        base_logprobs=optional("base_logprobs"),
        trainer_measures={name: spread([each[name] for each in measures]) for name in measures[0]}
        if measures
        else None,
        teacher_topk_ids=together("teacher_topk_ids"),
        teacher_topk_logprobs=together("teacher_topk_logprobs"),
        teacher_hidden=hidden or None,
        teachers=[record.teacher for record in scored],
        seeds=list(seeds),
        names=[record.rollout.name for record in scored],
    )


def token_batches(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices grouped by length, longest first, so that a group's padded size stays within `limit` tokens.

    A sequence longer than the limit makes a group of its own. A group that is worth a pass of its own takes no sequence
    that would be padded by more than `MAX_PADDING_RATIO` of the longest.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if groups and _fits(lengths[groups[-1][0]], lengths[index], len(groups[-1]), limit):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


MAX_PADDING_RATIO = 0.1
MIN_FILL_RATIO = 1 / 4  # of the limit


def _fits(longest: int, length: int, count: int, limit: int) -> bool:
    wasteful = length < (1 - MAX_PADDING_RATIO) * longest and longest * count >= MIN_FILL_RATIO * limit
    return longest * (count + 1) <= limit and not wasteful
