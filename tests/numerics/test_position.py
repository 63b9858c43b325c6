"""Diagnostics by position, against plain loops in float64."""

import math

import pytest
import torch
from torch.testing import assert_close

from iwopd.numerics import chunked_comparison, chunked_divergence
from iwopd.numerics.position import (
    absolute_bins,
    binned_mean,
    binned_sum,
    effective_sample_size,
    prefix_log_ratios,
    prefix_size,
    relative_bins,
    shares,
)

LENGTHS = [13, 1, 10, 29, 4]


@pytest.fixture
def mask():
    return torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


@pytest.fixture
def values(mask):
    drawn = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.masked_fill(~mask, math.nan)  # what stands outside must not matter


def loop_mean(values, bin_of, count):
    found = [[] for _ in range(count)]
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            found[bin_of(t, length)].append(values[row, t].item())
    return [sum(inside) / len(inside) if inside else math.nan for inside in found]


def test_tenths_are_of_each_responses_own_length(mask, values):
    expected = loop_mean(values, lambda t, length: 10 * t // length, 10)
    found = binned_mean(values, relative_bins(mask), mask, 10)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_absolute_positions_are_counted_from_the_start(mask, values):
    expected = loop_mean(values, lambda t, length: t // 4, 8)
    found = binned_mean(values, absolute_bins(mask, 4), mask, 8)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_bin_without_tokens_has_no_mean(mask, values):
    assert binned_mean(values, absolute_bins(mask, 4), mask, 9)[-1].isnan()


def test_sums_in_bins_add_up_to_the_whole(mask, values):
    found = binned_sum(values, relative_bins(mask), mask, 10)
    assert found.sum().item() == pytest.approx(sum(values[mask].tolist()), rel=1e-12)
    assert shares(found.abs()).sum().item() == pytest.approx(1)
    assert shares(torch.zeros(3)).tolist() == [0, 0, 0]


def test_parts_that_cancel_have_no_shares():
    """Of Σ−A near 0, a tenth would be thousands of per cent; of one sign, or nearly, they are shares as ever."""
    assert shares(torch.tensor([5.0, -4.9, 0.0])).isnan().all()
    assert shares(torch.tensor([1.0, -1.0])).isnan().all()
    assert shares(torch.tensor([-3.0, -1.0])).tolist() == [0.75, 0.25]
    assert shares(torch.tensor([3.0, 1.0, -0.1])).sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("length", "share", "size"), [(10, 0.3, 3), (100, 0.29, 29), (7, 0.5, 3), (9, 1.0, 9), (5, 0.0, 0)]
)
def test_prefixes_are_rounded_down(length, share, size):
    assert prefix_size(length, share) == size


def test_log_ratios_are_sums_of_the_advantages_before(mask, values):
    found = prefix_log_ratios(values, mask, points=11)
    for row, length in enumerate(LENGTHS):
        for point in range(11):
            prefix = values[row, : length * point // 10].tolist()
            assert found[row, point].item() == pytest.approx(sum(prefix), rel=1e-12, abs=1e-12)


def test_effective_sample_size_is_kishs(mask):
    weights = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1))
    inside = weights[mask].tolist()
    expected = sum(inside) ** 2 / sum(weight**2 for weight in inside) / len(inside)
    assert effective_sample_size(weights, mask) == pytest.approx(expected, rel=1e-6)
    assert effective_sample_size(torch.full(mask.shape, 3.0), mask) == pytest.approx(1)
    single = torch.zeros(mask.shape)
    single[0, 0] = 2.0
    assert effective_sample_size(single, mask) == pytest.approx(1 / sum(LENGTHS))
    assert effective_sample_size(torch.zeros(mask.shape), mask) == 0


# ---------------------------------------------------------------------------------------------- whole vocabularies


@pytest.fixture
def models():
    """Hidden states and heads of a student and of a teacher with more, padded, rows; and target tokens."""
    drawn = torch.Generator().manual_seed(2)
    hidden, teacher_hidden = torch.randn(23, 6, generator=drawn), torch.randn(23, 9, generator=drawn)
    matrix, teacher_matrix = torch.randn(40, 6, generator=drawn), torch.randn(48, 9, generator=drawn)
    targets = torch.randint(40, (23,), generator=drawn)
    return hidden, teacher_hidden, targets, lambda states: states @ matrix.T, lambda states: states @ teacher_matrix.T


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_comparison_is_that_of_a_plain_loop(models, chunk):
    hidden, teacher_hidden, targets, head, teacher_head = models
    found = chunked_comparison(*models, chunk=chunk, k=5)
    for token in range(len(targets)):
        student = torch.log_softmax(head(hidden[token]).double(), -1).tolist()
        teacher = torch.log_softmax(teacher_head(teacher_hidden[token])[:40].double(), -1).tolist()
        probable = [set(sorted(range(40), key=lambda v, given=given: -given[v])[:5]) for given in (student, teacher)]
        expected = {
            "logprobs": student[targets[token]],
            "teacher_logprobs": teacher[targets[token]],
            "reverse_kl": sum(math.exp(p) * (p - q) for p, q in zip(student, teacher, strict=True)),
            "entropy": -sum(math.exp(p) * p for p in student),
            "teacher_entropy": -sum(math.exp(q) * q for q in teacher),
            "overlap": len(probable[0] & probable[1]) / 5,
        }
        for name, value in expected.items():
            assert getattr(found, name)[token].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_comparison_and_loss_mean_the_same_reverse_kl(models):
    loss = chunked_divergence(*models, chunk=7)
    found = chunked_comparison(*models, chunk=7, k=100)
    assert_close(found.reverse_kl, loss.reverse_kl)
    assert_close(found.teacher_logprobs, loss.teacher_logprobs)
    assert found.overlap.tolist() == [1] * 23, "k above the vocabulary takes all of it"
