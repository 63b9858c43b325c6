"""Statistics of evaluations, against enumeration and by hand."""

import math
from itertools import combinations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from iwopd.report.stats import mean_interval, pass_at_k


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


def test_interval_is_that_of_the_empirical_likelihood():
    """Both bounds are weighted means whose likelihood is just allowed, and no lower or higher one is: by scipy."""
    values = [0.2, 0.4, 0.6, 0.8, 1.0]
    _, low, high = mean_interval(values)
    limit = stats.t.ppf(0.975, 5) ** 2 / 2
    for bound, end, sign in ((low, 0.0, 1), (high, 1.0, -1)):
        points, mass = numpy.array([*values, end]), numpy.array([1.0] * 5 + [0.5])
        found = optimize.minimize(
            lambda log_w, points=points, mass=mass, sign=sign: (
                sign * (mass * numpy.exp(log_w) @ points) / (mass @ numpy.exp(log_w))
            ),
            numpy.zeros(6),
            method="SLSQP",
            constraints={
                "type": "ineq",
                "fun": lambda log_w, mass=mass: mass @ (log_w - numpy.log(mass @ numpy.exp(log_w) / 5.5)) + limit,
            },
            options={"ftol": 1e-12, "maxiter": 1000},
        )
        assert bound == pytest.approx(sign * found.fun, abs=1e-5)


def test_interval_of_many_problems_is_students():
    values = [0.25, 0.75] * 2000
    mean, low, high = mean_interval(values)
    half = stats.t.ppf(0.975, 4000) * stats.sem(values)
    assert (mean, high - mean, mean - low) == pytest.approx((0.5, half, half), rel=0.01)


def test_interval_of_many_problems_narrows_with_their_root():
    _, low, high = mean_interval([0.25, 0.75] * 200)
    _, lower, higher = mean_interval([0.25, 0.75] * 800)
    assert (high - low) / (higher - lower) == pytest.approx(2.0, rel=0.02)


def test_a_wrong_answer_more_never_raises_a_bound():
    """128 of 128 against 127 of 128; 30 problems of 8 samples, one sample at a time from all right to all wrong."""
    lows = [mean_interval([1.0] * right + [0.0] * (128 - right))[1] for right in range(128, 119, -1)]
    assert lows == sorted(lows, reverse=True)
    assert lows[0] > lows[1] + 0.01
    whole = [1.0] * 29
    assert mean_interval([*whole, 31 / 32])[1] < mean_interval([*whole, 1.0])[1] < 0.9
    for problems, samples in ((30, 8), (5, 4), (3, 8), (2, 32), (1, 8)):
        counts, before = [samples] * problems, (1.0, 1.0)
        for problem in range(problems):
            for right in range(samples - 1, -1, -1):
                counts[problem] = right
                _, low, high = mean_interval([count / samples for count in counts])
                assert low <= before[0]
                assert high <= before[1] + 1e-12
                before = low, high


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 19), st.floats(0, 1))
def test_bounds_are_monotone_in_every_value(values, place, higher):
    raised = list(values)
    raised[place % len(values)] = max(higher, raised[place % len(values)])
    for before, after in zip(mean_interval(values), mean_interval(raised), strict=True):
        assert before <= after + 1e-9


@pytest.mark.process
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("problems", [3, 10, 30, 100])
@pytest.mark.parametrize("samples", [1, 4, 32])
def test_interval_holds_the_true_mean_as_often_as_it_says(share, problems, samples):
    """Problems of unlike difficulty (beta), for which mean ± 1.96 sd/√n holds it in 75 to 99 %."""
    drawn = numpy.random.default_rng(problems)
    difficulty = drawn.beta(2 * share, 2 * (1 - share), (150, problems))
    found = [mean_interval((row / samples).tolist()) for row in drawn.binomial(samples, difficulty)]
    held = sum(low <= share <= high for _, low, high in found) / len(found)
    assert held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 150)
    if problems == 100:
        assert numpy.mean([high - low for _, low, high in found]) < 0.21


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_one_problem_says_next_to_nothing(value):
    assert mean_interval([value]) == pytest.approx((value, 0.0, 1.0), abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_interval_holds_the_mean_and_stays_within_zero_and_one(values):
    mean, low, high = mean_interval(values)
    assert 0 <= low <= mean <= high <= 1


def test_interval_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
