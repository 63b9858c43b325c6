"""Statistics of evaluations, against enumeration and by hand."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwopd.numerics import mean_interval, pass_at_k


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_counts_the_draws_with_a_right_sample(n):
    for correct in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations([True] * correct + [False] * (n - correct), k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws), rel=1e-12)


def test_pass_at_one_is_the_share_of_right_samples():
    assert pass_at_k(32, 8, 1) == pytest.approx(0.25)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_of_impossible_counts_is_an_error(n, correct, k):
    with pytest.raises(ValueError, match=f"n={n}, correct={correct}"):
        pass_at_k(n, correct, k)


def test_interval_by_hand():
    # mean 0.5, sample variance (0.09 + 0.01 + 0.01 + 0.09) / 3
    half = 1.959963984540054 * math.sqrt(0.2 / 3 / 4)
    assert mean_interval([0.2, 0.4, 0.6, 0.8]) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_interval_of_many_problems_narrows_with_their_root():
    _, low, high = mean_interval([0.25, 0.75] * 50)
    _, lower, higher = mean_interval([0.25, 0.75] * 200)
    assert (high - low) / (higher - lower) == pytest.approx(2.0, rel=0.01)


def test_interval_is_cut_to_what_a_share_can_be():
    assert mean_interval([0.0, 0.0, 0.0, 0.4])[1] == 0.0
    assert mean_interval([1.0, 1.0, 1.0, 0.6])[2] == 1.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], (1.0, 0.2065, 1.0)),
        ([0.0], (0.0, 0.0, 0.7935)),
        ([0.5], (0.5, 0.0546, 0.9454)),
        ([0.0] * 10, (0.0, 0.0, 0.2775)),
        ([1.0] * 10, (1.0, 0.7225, 1.0)),
        ([0.5] * 10, (0.5, 0.2366, 0.7634)),
    ],
)
def test_interval_without_spread_is_wilsons(values, expected):
    assert mean_interval(values) == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_interval_holds_the_mean_and_stays_within_zero_and_one(values):
    mean, low, high = mean_interval(values)
    assert 0 <= low <= mean <= high <= 1


def test_interval_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
