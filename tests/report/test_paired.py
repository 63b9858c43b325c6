"""Paired comparisons, against scipy on known samples and by simulation."""

import itertools
import math
import random

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from iwopd.config import AblateConfig
from iwopd.report.paired import adjusted_pvalues, bootstrap_interval, sign_flip_pvalue, smallest_pvalue, units_needed

# Student's sleep data (1908): hours of sleep gained with one drug over the other, ten patients.
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
SAMPLES = {
    "sleep": SLEEP,
    "one against": [0.01, 0.02, -0.005, 0.03, 0.015],
    "all of one sign": [-0.3, -0.31, -0.4, -0.2, -0.35],
    "around zero": [0.1, -0.1, 0.2, -0.25, 0.05, 0.0],
    "drawn": torch.randn(12, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tolist(),
    "ties": [1.0, 1.0, -1.0, 1.0],
}


@pytest.mark.parametrize("values", SAMPLES.values(), ids=SAMPLES.keys())
def test_sign_flips_agree_with_scipys_permutation_test(values: list[float]) -> None:
    theirs = stats.permutation_test(
        (values,), lambda x, axis: numpy.mean(x, axis=axis), permutation_type="samples", n_resamples=numpy.inf
    )
    assert sign_flip_pvalue(values) == pytest.approx(theirs.pvalue, abs=1e-12)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=7))
def test_sign_flips_by_enumeration(values: list[float]) -> None:
    means = [abs(math.fsum(sign * value for sign, value in zip(signs, values, strict=True)))
             for signs in itertools.product((1, -1), repeat=len(values))]  # fmt: skip
    bound = abs(math.fsum(values)) - 1e-9 * math.fsum(map(abs, values))
    assert sign_flip_pvalue(values) == pytest.approx(sum(mean >= bound for mean in means) / len(means))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 10, 16])
def test_no_p_is_smaller_than_that_of_all_signs_alike(n: int) -> None:
    values = [0.1 + 0.01 * index for index in range(n)]
    assert sign_flip_pvalue(values) == smallest_pvalue(n) == min(1.0, 2 / 2**n)


def test_many_differences_draw_signs() -> None:
    generator = torch.Generator().manual_seed(3)
    values = (torch.randn(24, generator=generator) + 0.35).tolist()
    theirs = stats.permutation_test(
        (values,),
        lambda x, axis: numpy.mean(x, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=numpy.random.default_rng(0),
    )
    assert sign_flip_pvalue(values) == pytest.approx(theirs.pvalue, abs=0.01)
    assert sign_flip_pvalue(values) == sign_flip_pvalue(values)


def test_chance_alone_is_found_significant_no_more_often_than_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [sign_flip_pvalue(torch.randn(8, generator=generator).tolist()) <= 0.05 for _ in range(2000)]
    assert sum(found) / len(found) == pytest.approx(12 / 256, abs=0.015)  # p goes in steps of 2/256


@pytest.mark.parametrize("name", ["sleep", "one against", "drawn"])
def test_plain_percentiles_agree_with_scipys_bootstrap(name: str) -> None:
    values = SAMPLES[name]
    theirs = stats.bootstrap(
        (values,), numpy.mean, method="percentile", n_resamples=50_000, rng=numpy.random.default_rng(0)
    ).confidence_interval
    ours = bootstrap_interval(values, resamples=50_000, expand=False)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02 * numpy.std(values))


def test_the_expanded_interval_is_as_wide_as_students() -> None:
    """On a large sample both are; on a small normal one, by construction, about."""
    generator = torch.Generator().manual_seed(1)
    for n, tolerance in ((10, 0.15), (200, 0.03)):
        values = torch.randn(n, generator=generator, dtype=torch.float64).tolist()
        low, high = bootstrap_interval(values, resamples=20_000)
        theirs = stats.t.interval(0.95, n - 1, numpy.mean(values), stats.sem(values))
        assert high - low == pytest.approx(theirs[1] - theirs[0], rel=tolerance)


@pytest.mark.parametrize(("n", "expected"), [(5, 0.92), (10, 0.95), (20, 0.95)])
def test_coverage_is_as_documented(n: int, expected: float) -> None:
    """How often the 95 % interval holds the true mean, over a thousand samples: a standard error of 0.007."""
    generator = torch.Generator().manual_seed(n)
    held = 0
    for trial in range(1000):
        low, high = bootstrap_interval(torch.randn(n, generator=generator).tolist(), resamples=1000, seed=trial)
        held += low <= 0 <= high
    assert held / 1000 == pytest.approx(expected, abs=0.025)


def test_intervals_repeat_and_stay_within_the_differences() -> None:
    assert bootstrap_interval(SLEEP) == bootstrap_interval(SLEEP) != bootstrap_interval(SLEEP, seed=1)
    low, high = bootstrap_interval([0.1, 0.3])
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.3))
    assert bootstrap_interval([0.2, 0.2, 0.2]) == (pytest.approx(0.2), pytest.approx(0.2))


# ---------------------------------------------------------------------------------------------- several at once


def max_t_by_enumeration(looks: list[list[float]]) -> list[float]:
    """Westfall & Young's step-down, look by look: the share of sign patterns whose largest statistic among this look
    and all with smaller ones is as large."""
    n = len(looks[0])

    def statistic(look: list[float], signs: tuple[int, ...]) -> float:
        total = math.fsum(sign * value for sign, value in zip(signs, look, strict=True))
        return abs(total) / (math.sqrt(math.fsum(value**2 for value in look)) or 1.0)

    observed = [statistic(look, (1,) * n) for look in looks]
    order = sorted(range(len(looks)), key=lambda index: -observed[index])
    found, before = [0.0] * len(looks), 0.0
    for place, index in enumerate(order):
        patterns = list(itertools.product((1, -1), repeat=n))
        hits = [max(statistic(looks[other], signs) for other in order[place:]) for signs in patterns]
        before = max(before, sum(hit >= observed[index] - 1e-9 for hit in hits) / len(patterns))
        found[index] = before
    return found


@pytest.mark.parametrize("seed", range(12))
def test_corrected_pvalues_by_enumeration(seed: int) -> None:
    drawn = random.Random(seed)
    n, looks = drawn.randint(1, 6), drawn.randint(1, 4)
    differences = [
        [drawn.choice((drawn.gauss(0.5, 1), drawn.gauss(0.5, 1), 0.0, 0.25)) for _ in range(n)] for _ in range(looks)
    ]
    assert adjusted_pvalues(differences) == pytest.approx(max_t_by_enumeration(differences))


def test_one_look_needs_no_correction_and_many_alike_none_either() -> None:
    for values in SAMPLES.values():
        assert adjusted_pvalues([values]) == [sign_flip_pvalue(values)]
        assert adjusted_pvalues([values] * 12) == pytest.approx([sign_flip_pvalue(values)] * 12)


def test_however_many_looks_six_units_can_be_enough_and_five_cannot() -> None:
    assert units_needed() == 6
    noise = torch.randn(11, 6, generator=torch.Generator().manual_seed(2)).tolist()
    clear = [0.1, 0.102, 0.098, 0.101, 0.1, 0.099]
    assert adjusted_pvalues([clear, *noise])[0] == smallest_pvalue(6) == 0.03125
    assert min(adjusted_pvalues([clear[:5], *(look[:5] for look in noise)])) == smallest_pvalue(5) > 0.05


def test_units_that_a_look_lacks_do_not_count() -> None:
    looks = [[0.3, 0.1, 0.2, None, 0.3], [0.1, -0.1, 0.2, 0.1, 0.4]]
    shorter = [[value for value in look if value is not None] for look in looks]
    assert adjusted_pvalues(looks[:1]) == [sign_flip_pvalue(shorter[0])]
    assert adjusted_pvalues(looks)[0] >= smallest_pvalue(4)


def test_many_units_draw_signs_for_all_looks_together() -> None:
    generator = torch.Generator().manual_seed(1)
    looks = (torch.randn(3, 40, generator=generator) + torch.tensor([[0.8], [0.0], [0.3]])).tolist()
    first, second = adjusted_pvalues(looks, draws=20_000), adjusted_pvalues(looks, draws=20_000, seed=1)
    assert first[0] < 0.001
    assert first == pytest.approx(second, abs=0.02)
    assert all(p >= sign_flip_pvalue(look) - 0.01 for p, look in zip(first, looks, strict=True))


@pytest.mark.parametrize("arms", [1, 3])
def test_under_the_null_few_studies_call_anything_larger_than_the_noise(arms: int) -> None:
    """Family-wise: the default study's seeds, arms that share a baseline, four correlated figures each; and a clear
    difference elsewhere leaves it so."""
    generator = torch.Generator().manual_seed(arms)
    seeds = AblateConfig().seeds
    mix = torch.tensor([[1, 0.3, 0.3, 0.5], [0.3, 1, 0.9, 0.6], [0.3, 0.9, 1, 0.6], [0.5, 0.6, 0.6, 1]])
    runs = torch.randn(600, seeds, arms + 1, 4, generator=generator) @ torch.linalg.cholesky(mix).T
    differences = (runs[:, :, 1:] - runs[:, :, :1]).flatten(2)
    differences[300:, :, 0] += 20.0
    found = [adjusted_pvalues(study.T.tolist()) for study in differences]
    nothing = sum(min(study) <= 0.05 for study in found[:300]) / 300
    elsewhere = sum(min(study[1:]) <= 0.05 for study in found[300:]) / 300
    assert nothing < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert elsewhere < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert all(study[0] <= 0.05 for study in found[300:]), "what is there is found"


def test_nothing_to_compare_is_an_error() -> None:
    for wrong in ([], [float("nan")]):
        with pytest.raises(ValueError, match="finite differences"):
            sign_flip_pvalue(wrong)
    with pytest.raises(ValueError, match="two differences"):
        bootstrap_interval([0.1])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([0.1, 0.2], level=1.0)
    with pytest.raises(ValueError, match="one look"):
        adjusted_pvalues([])
