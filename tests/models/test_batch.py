"""From records to tensors: the one shift of tokens, padding, windows and groups."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from iwopd.models.batch import collate, collate_tokens
from iwopd.models.packing import token_batches
from iwopd.numerics import window_bounds
from iwopd.types import ScoredRollout, as_logprobs

WINDOWS = {
    "whole": lambda length: (0, length),
    "first": lambda length: window_bounds(length, 0.3, "first"),
    "last": lambda length: window_bounds(length, 0.3, "last"),
    "middle": lambda length: window_bounds(length, 0.3, "middle"),
}
on_padding = pytest.mark.parametrize("padding", ["right", "left"])
on_windows = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)


def windows_of(rollouts, window):
    return [window(len(rollout.response_ids)) for rollout in rollouts]


@pytest.fixture
def rollouts(make_rollouts):
    return make_rollouts(7, seed=2)


@pytest.fixture
def scored(rollouts):
    """Scored over the last half, with log-probs that say whose they are and where they belong."""
    records = []
    for rollout in rollouts:
        start, stop = window_bounds(len(rollout.response_ids), 0.5, "last")
        rollout = replace(rollout, sampler_logprobs=as_logprobs(-np.arange(len(rollout.response_ids))))
        teacher, trainer = (as_logprobs(-base - np.arange(start, stop)) for base in (100, 200))
        records.append(ScoredRollout(rollout, start, stop, teacher, trainer))
    return records


@on_padding
@on_windows
def test_logprob_t_is_that_of_token_t_given_all_before_it(window, padding, rollouts, tiny_model):
    lm, windows = tiny_model(0), windows_of(rollouts, window)
    tokens = collate_tokens(rollouts, windows, padding=padding)
    with torch.no_grad():
        found = tokens.to_padded(lm.token_logprobs(tokens))
        for row, (rollout, (start, stop)) in enumerate(zip(rollouts, windows, strict=True)):
            for place, t in enumerate(range(start, stop)):
                before = torch.tensor(rollout.ids(t))[None].long()
                expected = torch.log_softmax(lm.model(before).logits[0, -1], dim=-1)[rollout.response_ids[t]]
                assert_close(found[row, place], expected, rtol=1e-5, atol=1e-5)


@on_padding
@on_windows
def test_inputs_end_before_the_last_token_of_the_window(window, padding, rollouts):
    windows = windows_of(rollouts, window)
    tokens = collate_tokens(rollouts, windows, padding=padding)
    inputs = [
        [*rollout.prompt_ids, *rollout.response_ids[:stop]][:-1]
        for rollout, (_, stop) in zip(rollouts, windows, strict=True)
    ]
    assert tokens.input_ids.shape == (len(rollouts), max(map(len, inputs)))
    for row, ids in zip(tokens.input_ids.tolist(), inputs, strict=True):
        at = 0 if padding == "right" else len(row) - len(ids)
        assert row[at : at + len(ids)] == ids


def test_only_left_padding_needs_an_attention_mask(rollouts):
    windows = windows_of(rollouts, WINDOWS["whole"])
    right, left = (collate_tokens(rollouts, windows, padding=padding) for padding in ("right", "left"))
    assert right.attention_mask is right.position_ids is None
    for mask, positions, (_, length), rollout in zip(
        left.attention_mask, left.position_ids, windows, rollouts, strict=True
    ):
        read = len(rollout.prompt_ids) + length - 1
        assert mask.tolist() == [0] * (len(mask) - read) + [1] * read
        assert positions[mask.bool()].tolist() == list(range(read))


@on_padding
@on_windows
def test_layout_counts_from_the_windows_start(window, padding, rollouts):
    windows = windows_of(rollouts, window)
    tokens = collate_tokens(rollouts, windows, padding=padding)
    assert tokens.mask.sum(-1).tolist() == [stop - start for start, stop in windows]
    assert tokens.lengths.tolist() == [len(rollout.response_ids) for rollout in rollouts]
    for mask, positions, (start, stop) in zip(tokens.mask, tokens.positions, windows, strict=True):
        assert mask[: stop - start].all()
        assert positions[mask].tolist() == list(range(start, stop))
    targets = [
        token
        for rollout, (start, stop) in zip(rollouts, windows, strict=True)
        for token in rollout.response_ids[start:stop]
    ]
    assert tokens.targets.tolist() == targets


def test_spread_and_ragged_put_tokens_in_their_rows(rollouts):
    tokens = collate_tokens(rollouts, windows_of(rollouts, WINDOWS["whole"]))
    flat = torch.arange(1.0, len(tokens.targets) + 1, requires_grad=True)
    padded = tokens.to_padded(flat)
    for row, values in zip(padded, tokens.to_rows(flat), strict=True):
        assert row[: len(values)].tolist() == values.tolist()
        assert not row[len(values) :].any()
    padded.sum().backward()
    assert flat.grad.tolist() == [1.0] * len(flat)


@on_padding
def test_collate_puts_every_logprob_at_its_token(padding, scored):
    batch = collate(scored, seeds=range(7), padding=padding)
    for row, record in enumerate(scored):
        places = batch.tokens.mask[row]
        wanted = torch.arange(record.start, record.stop).float()
        assert torch.equal(batch.sampler_logprobs[row][places], -wanted)
        assert torch.equal(batch.teacher_logprobs[row][places], -100 - wanted)
        assert torch.equal(batch.trainer_logprobs[row][places], -200 - wanted)
    assert batch.names == [f"p{index}#{index % 2}" for index in range(7)]
    assert batch.seeds == list(range(7))


def test_collate_keeps_hidden_states_in_the_order_of_the_targets(scored):
    records = [
        replace(record, teacher_hidden=torch.full((record.stop - record.start, 3), float(row)))
        for row, record in enumerate(scored)
    ]
    batch = collate(records, seeds=range(7))
    assert torch.equal(batch.teacher_hidden[""][:, 0].long(), batch.tokens.rows)


def test_what_was_not_recorded_is_none(scored):
    batch = collate([replace(record, trainer_logprobs=None) for record in scored], seeds=range(7))
    assert batch.trainer_logprobs is batch.teacher_hidden is None


@given(st.lists(st.integers(1, 60), max_size=25), st.integers(1, 200))
def test_groups_hold_every_index_once_within_the_limit_longest_first(lengths, limit):
    groups = token_batches(lengths, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    in_order = [lengths[index] for group in groups for index in group]
    assert in_order == sorted(lengths, reverse=True)
    for group in groups:
        assert len(group) == 1 or max(lengths[index] for index in group) * len(group) <= limit


def test_groups_are_filled_as_far_as_the_limit_allows():
    assert token_batches([5, 9, 5, 2, 2], limit=10) == [[1], [0, 2], [3, 4]]


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60), limit=st.integers(1, 2000))
def test_token_batches_hold_every_sequence_once_within_the_limit_and_with_little_padding(
    lengths: list[int], limit: int
) -> None:
    groups = token_batches(lengths, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        longest, shortest = lengths[group[0]], lengths[group[-1]]
        assert longest == max(lengths[index] for index in group)
        assert len(group) == 1 or longest * len(group) <= limit
        # Much padding only where a group is too small to be worth a pass of its own.
        full = [index for index in group if lengths[index] >= 0.9 * longest]
        assert shortest >= 0.9 * longest or longest * len(full) < limit / 4
