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
class Prompts:
    """Prompts that are read once each, whatever the number of their responses.

    Attributes:
        input_ids, position_ids: [prompts, columns], padded on the left, so that a response stands right after its own.
        attention_mask: likewise; None where all are of one length.
        of_row: [batch], the prompt of each response.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    of_row: Tensor


@dataclass(frozen=True)
class Tokens:
    """Prompts and responses, cut after each response's window, as a model's input.

    Attributes:
        input_ids: [batch, columns], padded; with `prompts`, responses alone.
        attention_mask: [batch, columns], or None where padding is on the right: attention is causal, so no real
            token sees it, and attention without a mask takes the fast kernels.
        position_ids: [batch, columns], or None likewise.
        prompts: None where each row begins with its own. With them, attention_mask has their columns too, and the last
            state of a row's prompt is column 0 of its states.
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
    prompts: Prompts | None = None

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
        reward: [batch, 1].
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
    reward: Tensor | None
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
    share: bool = False,
) -> Tokens:
    """Pad `rollouts`, each cut after its window ``[start, stop)`` of response tokens, into one input.

    The last token of a window is predicted, never read, so it is not part of the input.

    Args:
        share: read equal prompts once; with padding on the right.
    """
    begins = [0 if share else len(rollout.prompt_ids) for rollout in rollouts]
    sizes = [begin + stop - 1 for begin, (_, stop) in zip(begins, windows, strict=True)]
    width, time = max(*sizes, 1), max(stop - start for start, stop in windows)
    input_ids = torch.zeros(len(sizes), width, dtype=torch.long)
    attention_mask = torch.zeros(len(sizes), width, dtype=torch.long) if padding == "left" else None
    mask = torch.zeros(len(sizes), time, dtype=torch.bool)
    rows, columns, targets = [], [], []
    for row, (size, rollout, (start, stop)) in enumerate(zip(sizes, rollouts, windows, strict=True)):
        pad, read = width - size if padding == "left" else 0, slice(len(rollout.prompt_ids) - begins[row], -1)
        input_ids[row, pad : pad + size] = torch.from_numpy(rollout.ids(stop)[read])
        if attention_mask is not None:
            attention_mask[row, pad:] = 1
        mask[row, : stop - start] = True
        # The state that predicts response token t is one column before that token; with shared prompts, their last
        # state takes column 0.
        first = pad + (start if share else len(rollout.prompt_ids) + start - 1)
        rows.append(torch.full((stop - start,), row))
        columns.append(torch.arange(first, first + stop - start))
        targets.append(rollout.response_ids[start:stop])
    position_ids = None if attention_mask is None else (attention_mask.cumsum(-1) - 1).clamp(min=0)
    prompts = None
    if share:
        prompts, attention_mask, position_ids = _shared(rollouts, torch.tensor(sizes), width, device)
    return Tokens(
        input_ids=input_ids.to(device),
        attention_mask=None if attention_mask is None else attention_mask.to(device),
        position_ids=None if position_ids is None else position_ids.to(device),
        rows=torch.cat(rows).to(device),
        columns=torch.cat(columns).to(device),
        targets=torch.from_numpy(numpy.concatenate(targets)).long().to(device),
        mask=mask.to(device),
        positions=(torch.tensor([start for start, _ in windows])[:, None] + torch.arange(time)).to(device),
        lengths=torch.tensor([len(rollout.response_ids) for rollout in rollouts], device=device),
        prompts=prompts,
    )


def _shared(
    rollouts: Sequence[Rollout], sizes: Tensor, width: int, device: torch.device | str
) -> tuple[Prompts, Tensor | None, Tensor]:
    """The prompts, and of the responses [batch, width] that follow them the mask, prompts included, and positions.

    Args:
        sizes: [batch], tokens read of each response.
    """
    numbers = {ids: number for number, ids in enumerate(dict.fromkeys(each.prompt_ids.tobytes() for each in rollouts))}
    of_row = torch.tensor([numbers[each.prompt_ids.tobytes()] for each in rollouts])
    different = {number: each.prompt_ids for number, each in zip(of_row.tolist(), rollouts, strict=True)}
    lengths = torch.tensor([len(different[number]) for number in range(len(numbers))])
    columns = int(lengths.max())
    input_ids = torch.zeros(len(numbers), columns, dtype=torch.long)
    for number, ids in different.items():
        input_ids[number, columns - len(ids) :] = torch.from_numpy(ids)
    position_ids = torch.arange(columns) - (columns - lengths[:, None])
    padded = bool((lengths < columns).any())
    mask = (position_ids >= 0).long()
    prompts = Prompts(
        input_ids=input_ids.to(device),
        position_ids=position_ids.clamp(min=0).to(device),
        attention_mask=mask.to(device) if padded else None,
        of_row=of_row.to(device),
    )
    # Padding stays at the last position that is read: positions after it may be more than a model has.
    after = lengths[of_row, None] + torch.minimum(torch.arange(width), (sizes[:, None] - 1).clamp(min=0))
    whole = torch.cat([mask[of_row], mask.new_ones(len(rollouts), width)], dim=-1) if padded else None
    return prompts, whole, after


def collate(
    scored: Sequence[ScoredRollout],
    seeds: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    padding: Literal["right", "left"] = "right",
    share: bool = False,
) -> Batch:
    """One micro-batch. `seeds` are the rollouts' own, for schemes that draw at random; see `collate_tokens`."""
    windows, rollouts = [(record.start, record.stop) for record in scored], [record.rollout for record in scored]
    tokens = collate_tokens(rollouts, windows, device=device, padding=padding, share=share)

    def spread(rows: list[Logprobs]) -> Tensor:
        return tokens.to_padded(torch.from_numpy(numpy.concatenate(rows)).to(device))

    def together(name: str) -> Tensor | None:
        rows = [getattr(record, name) for record in scored if getattr(record, name) is not None]
        return torch.from_numpy(numpy.concatenate(rows)).to(device) if rows else None

    def optional(name: str) -> Tensor | None:
        flat = together(name)
        return None if flat is None else tokens.to_padded(flat)

    rewards = [record.reward for record in scored if record.reward is not None]
    measures = [record.trainer_measures for record in scored if record.trainer_measures is not None]
    states = {record.teacher: list[Tensor]() for record in scored if record.teacher_hidden is not None}
    for record in scored:
        if record.teacher_hidden is not None:
            states[record.teacher].append(record.teacher_hidden)
    hidden = {name: torch.cat(own).to(device) for name, own in states.items()}
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
        reward=torch.tensor(rewards, device=device)[:, None] if rewards else None,
        seeds=list(seeds),
        names=[record.rollout.name for record in scored],
    )
