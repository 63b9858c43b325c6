"""Weights: the formulas against golden numbers and plain loops, and what every scheme promises."""

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support.paths import GOLDEN, REPOSITORY
from torch import Tensor
from torch.testing import assert_close

from iwopd.errors import ConfigError
from iwopd.models.batch import collate
from iwopd.numerics import WeightInput, iw_weights, opd_advantage, window_bounds, window_weights
from iwopd.numerics import weighting as schemes
from iwopd.training.objective import Objective
from iwopd.types import ScoredRollout, as_logprobs
from iwopd.weighting import SCHEMES, Weighting
from iwopd.weighting.iw import Iw
from iwopd.weighting.prefix_ratio import PrefixRatio
from iwopd.weighting.window import Window

CASES = json.loads((GOLDEN / "iw_opd_numerics.json").read_text())["cases"]
PRESETS = REPOSITORY / "conf" / "weighting"


def preset(name: str) -> Weighting:
    values = OmegaConf.to_container(OmegaConf.load(PRESETS / f"{name}.yaml"))
    [schema] = values.pop("defaults")
    kind = schema.removeprefix("/schema/weighting/").removesuffix("@_here_")
    return SCHEMES[kind](**values)


# A horizon's preset weighs uniformly; what it cuts, it cuts from the rollout.
BUILT_IN = sorted(
    file.stem for file in PRESETS.glob("*.yaml") if file.stem != "custom" and not file.stem.endswith("_horizon")
)


def matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def ragged(lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> WeightInput:
    """Right-padded rows of random advantages."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(max(lengths)).expand(len(lengths), -1)
    mask = time < torch.tensor(lengths)[:, None]
    advantages = torch.randn(mask.shape, generator=generator, dtype=torch.float64).to(dtype) * mask
    return WeightInput(
        advantages, mask, time.clone(), torch.tensor(lengths), -torch.ones_like(advantages), seeds=range(len(lengths))
    )


# ---------------------------------------------------------------------------------------------- iw


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed {case['seed']}")
def test_iw_equals_the_released_code(case):
    teacher, student = matrix(case["teacher_logprobs"]), matrix(case["trainer_logprobs_old"])
    mask = torch.arange(teacher.shape[1]) < torch.tensor(case["lengths"])[:, None]
    advantages = opd_advantage(teacher, student, mask)
    assert_close(advantages, matrix(case["advantages"]), rtol=1e-7, atol=1e-12)
    assert_close(iw_weights(advantages, mask, case["gamma"]), matrix(case["iw_weights"]), rtol=1e-7, atol=0)


def test_iw_of_the_worked_example():
    advantages = matrix([[0.2, -0.3, 0.5]])
    assert_close(iw_weights(advantages, advantages != 0), matrix([[1.5, 1.4, 1.25]]), rtol=1e-7, atol=0)


def test_gamma_zero_is_uniform():
    rows = ragged([5, 3])
    assert torch.equal(iw_weights(rows.advantages, rows.mask, 0.0), rows.mask.double())


def test_teacher_equal_to_student_weighs_nothing_though_every_weight_is_full():
    logprobs = -torch.rand(2, 6, dtype=torch.float64)
    mask = torch.ones(2, 6, dtype=torch.bool)
    advantages = opd_advantage(logprobs, logprobs.clone(), mask)
    weights = iw_weights(advantages, mask, 0.7)
    assert torch.equal(weights, torch.full_like(weights, 1.7))
    assert not (weights * advantages).any()


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=20),
    st.floats(0, 4),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_iw_falls_from_one_plus_gamma_and_never_below_one(values, gamma, dtype):
    advantages = torch.tensor([values], dtype=dtype)
    [weights] = iw_weights(advantages, torch.ones_like(advantages, dtype=torch.bool), gamma)
    assert_close(weights[0], torch.tensor(1 + gamma, dtype=dtype))
    assert weights.min() >= 1
    assert (weights.diff() <= 0).all()


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=12).filter(lambda r: any(m for _, m in r))
)
@pytest.mark.parametrize("junk", [math.nan, math.inf, 7.0])
def test_what_stands_in_masked_places_changes_nothing(junk, row):
    mask = torch.tensor([[inside for _, inside in row]])
    advantages = matrix([[value if inside else junk for value, inside in row]])
    kept = advantages[mask][None]
    weights = iw_weights(advantages, mask)
    assert_close(weights[mask][None], iw_weights(kept, torch.ones_like(kept, dtype=torch.bool)), rtol=1e-12, atol=0)
    assert not weights[~mask].any()


def test_advantage_is_zero_where_masked_whatever_stands_there():
    teacher, student = matrix([[-1.0, math.nan, -math.inf]]), matrix([[-2.0, -1.0, -math.inf]])
    assert opd_advantage(teacher, student, torch.tensor([[True, False, False]])).tolist() == [[1.0, 0.0, 0.0]]


def test_advantage_and_weights_are_detached():
    logprobs = matrix([[-1.0, -2.0]]).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert not opd_advantage(logprobs, logprobs * 2, mask).requires_grad
    assert not iw_weights(logprobs * 2, mask).requires_grad


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-10)],
)
def test_iw_keeps_the_dtype_and_is_as_exact_as_it_allows(dtype, tolerance):
    # So long that a sum in bfloat16 would have stopped growing.
    rows = ragged([3000, 2000], dtype=dtype)
    weights = iw_weights(rows.advantages, rows.mask)
    assert weights.dtype == dtype
    assert_close(weights.double(), iw_weights(rows.advantages.double(), rows.mask), rtol=tolerance, atol=0)


@pytest.mark.parametrize("gamma", [-0.1, math.nan])
def test_gamma_below_zero_is_an_error(gamma):
    rows = ragged([2])
    with pytest.raises(ValueError, match="gamma"):
        iw_weights(rows.advantages, rows.mask, gamma)


# ---------------------------------------------------------------------------------------------- variants of iw


def share_before(row: list[float]) -> list[float]:
    total = sum(map(abs, row)) + 1e-8
    return [sum(map(abs, row[:t])) / total for t in range(len(row))]


def iw_row(row: list[float]) -> list[float]:
    return [1 + 0.5 * (1 - share) for share in share_before(row)]


def signed_row(row: list[float]) -> list[float]:
    total = sum(map(abs, row)) + 1e-8
    return [1 + 0.5 * (1 + sum(row[:t]) / total) for t in range(len(row))]


VARIANTS = {
    "iw": (lambda given: iw_weights(given.advantages, given.mask, 0.5), iw_row),
    "iw_reversed": (lambda given: schemes.iw_reversed_weights(given, 0.5), lambda row: iw_row(row)[::-1]),
    "iw_signed": (lambda given: schemes.iw_signed_weights(given, 0.5), signed_row),
    "iw_surrogate": (schemes.iw_surrogate_weights, lambda row: [1 - share for share in share_before(row)]),
}


@pytest.mark.parametrize("layout", ["right padding", "left padding", "holes"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_iw_equal_a_plain_loop(name, layout):
    scheme, by_row = VARIANTS[name]
    rows = ragged([9, 1, 6, 2], seed=3)
    lists = [row[mask].tolist() for row, mask in zip(rows.advantages, rows.mask, strict=True)]
    if layout == "left padding":
        rows = replace(rows, mask=rows.mask.flip(-1), advantages=rows.advantages.flip(-1))
        lists = [values[::-1] for values in lists]
    if layout == "holes":
        rows.mask[0, [0, 4, 7]] = False
        lists[0] = rows.advantages[0][rows.mask[0]].tolist()
    weights = scheme(replace(rows, advantages=rows.advantages.masked_fill(~rows.mask, math.nan)))
    for found, mask, values in zip(weights, rows.mask, lists, strict=True):
        assert_close(found[mask], torch.tensor(by_row(values), dtype=torch.float64), rtol=1e-12, atol=1e-15)
        assert not found[~mask].any()


# ---------------------------------------------------------------------------------------------- windows

FRACTIONS = ["0.01", "0.07", "0.1", "0.14", "0.28", "0.3", "0.34", "0.5", "0.55", "0.7", "0.9", "1.0"]


def exact_size(length: int, fraction: str) -> int:
    return min(length, max(1, math.ceil(Fraction(fraction) * length)))


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("side", ["first", "last", "middle"])
def test_windows_keep_the_exact_ceiling_and_at_least_one_token(side, fraction):
    for length in range(1, 201):
        start, stop = window_bounds(length, float(fraction), side)
        assert stop - start == exact_size(length, fraction)
        before, after = start, length - stop
        assert {"first": before == 0, "last": after == 0, "middle": 0 <= after - before <= 1}[side]


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4), st.sampled_from(FRACTIONS))
@pytest.mark.parametrize("side", ["first", "last", "middle"])
def test_window_weights_count_masked_tokens_not_columns(side, rows, fraction):
    mask = torch.tensor(rows)
    weights = window_weights(mask, float(fraction), side)
    assert not weights[~mask].any()
    for found, inside in zip(weights, mask, strict=True):
        length = int(inside.sum())
        start, stop = window_bounds(length, float(fraction), side)
        assert found[inside].tolist() == [float(start <= t < stop) for t in range(length)]


@pytest.mark.parametrize("fraction", [0.0, -0.3, 1.5, math.nan])
def test_fraction_outside_its_range_is_an_error(fraction):
    with pytest.raises(ValueError, match="fraction"):
        window_weights(torch.ones(1, 4, dtype=torch.bool), fraction)


def test_unknown_side_is_an_error():
    unchecked = inspect.unwrap(window_bounds)  # the type checker of the tests would see it first
    with pytest.raises(ValueError, match="side=left"):
        unchecked(10, 0.3, "left")


@pytest.mark.parametrize("fraction", ["0.3", "0.55", "1.0"])
def test_random_windows_keep_as_many_as_fixed_ones(fraction):
    rows = ragged([1, 7, 100, 20])
    kept = schemes.random_window_weights(rows, float(fraction))
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    assert kept.sum(-1).tolist() == [exact_size(length, fraction) for length in (1, 7, 100, 20)]


def test_random_windows_depend_on_the_seed_alone():
    rows = replace(ragged([40, 40, 30]), seeds=[5, 6, 5])
    torch.manual_seed(1)
    once = schemes.random_window_weights(rows, 0.3)
    torch.manual_seed(2)
    again = schemes.random_window_weights(replace(rows, advantages=rows.advantages * 2), 0.3)
    alone = schemes.random_window_weights(replace(ragged([40]), seeds=[5]), 0.3)
    assert torch.equal(once, again)
    assert torch.equal(once[0], alone[0])
    assert not torch.equal(once[0], once[1])


def test_random_windows_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    schemes.random_window_weights(ragged([9]), 0.3)
    assert torch.equal(torch.rand(4), expected)


# ---------------------------------------------------------------------------------------------- annealed prefixes


@pytest.mark.parametrize(
    ("anneal", "progress", "expected"),
    [
        ("linear", 0.0, 0.3),
        ("linear", 0.5, 0.65),
        ("linear", 1.0, 1.0),
        ("cosine", 0.0, 0.3),
        ("cosine", 0.25, 0.3 + 0.7 * (1 - math.sqrt(0.5)) / 2),
        ("cosine", 0.5, 0.65),
        ("cosine", 1.0, 1.0),
        ("linear", -1.0, 0.3),
        ("cosine", 2.0, 1.0),
    ],
)
def test_annealed_fraction_goes_from_start_to_end(anneal, progress, expected):
    assert schemes.annealed_fraction(0.3, 1.0, progress, anneal) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("fraction", "boosted"), [(0.3, [3, 1]), (0.7, [7, 1]), (1.0, [10, 1])])
def test_prefix_boost_raises_the_prefix_alone(fraction, boosted):
    weights = schemes.prefix_boost_weights(ragged([10, 1]), fraction, 1.5)
    expected = [[1.5 if t < boosted[row] else 1.0 for t in range(length)] for row, length in enumerate([10, 1])]
    assert [row[:length].tolist() for row, length in zip(weights, [10, 1], strict=True)] == expected
    assert not weights[1, 1:].any()


# ---------------------------------------------------------------------------------------------- prefix ratio


def naive_prefix_ratio(rows: list[list[float]], alpha: float) -> list[list[float]]:
    """r(y_<t)^α over its mean among the rollouts that have a token t."""
    raw = [[math.exp(alpha * sum(row[:t])) for t in range(len(row))] for row in rows]
    mean = [
        sum(values) / len(values)
        for t in range(max(map(len, raw)))
        for values in [[row[t] for row in raw if t < len(row)]]
    ]
    return [[value / mean[t] for t, value in enumerate(row)] for row in raw]


@pytest.mark.parametrize("gamma", [None, 0.5])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
@pytest.mark.parametrize("lengths", [[4, 4], [9, 1, 6, 2, 9]])
def test_prefix_ratio_equals_a_plain_double_loop(lengths, alpha, gamma):
    rows = ragged(lengths, seed=5)
    lists = [row[:length].tolist() for row, length in zip(rows.advantages, lengths, strict=True)]
    weights = schemes.prefix_ratio_weights(rows, alpha, gamma)
    for found, expected, length in zip(weights, naive_prefix_ratio(lists, alpha), lengths, strict=True):
        blended = expected if gamma is None else [1 + gamma * value for value in expected]
        assert_close(found[:length], torch.tensor(blended, dtype=torch.float64), rtol=1e-10, atol=0)
        assert not found[length:].any()


def test_prefix_ratio_has_mean_one_over_the_rollouts_alive_at_each_token():
    rows = ragged([9, 1, 6, 2, 9], seed=6)
    ratio = schemes.prefix_ratio_weights(rows, 0.5, None)
    assert_close(ratio.sum(0) / rows.mask.sum(0), torch.ones(9, dtype=torch.float64), rtol=1e-12, atol=0)


def test_prefix_ratio_goes_by_position_not_by_column():
    rows = ragged([6, 3], seed=7)
    shifted = WeightInput(
        advantages=torch.stack([rows.advantages[0], rows.advantages[1].roll(3)]),
        mask=torch.stack([rows.mask[0], rows.mask[1].roll(3)]),
        positions=torch.stack([rows.positions[0], rows.positions[1].roll(3)]),
        lengths=rows.lengths,
        teacher_logprobs=rows.teacher_logprobs,
    )
    right, left = (schemes.prefix_ratio_weights(given, 0.5, None) for given in (rows, shifted))
    assert_close(left[0], right[0])
    assert_close(left[1, 3:], right[1, :3])


@pytest.mark.parametrize("drift", [-50.0, 50.0])
def test_prefix_ratio_survives_ratios_no_float_can_hold(drift):
    rows = ragged([60, 60], dtype=torch.float32)
    rows = replace(rows, advantages=rows.advantages + drift)
    ratio = schemes.prefix_ratio_weights(rows, 1.0, None)
    assert_close(ratio.sum(0), torch.full((60,), 2.0), rtol=1e-3, atol=0)


# ---------------------------------------------------------------------------------------------- as the stages see them


class Mine(Weighting):
    """A scheme of one function."""

    def __init__(self, function: Callable[[WeightInput], Tensor]):
        self.scheme, self.function = "mine", function

    def weights(self, given: WeightInput) -> Tensor:
        return self.function(given)


def weights_of(weighting: Weighting, scored: list[ScoredRollout], progress: float = 0.0, seeds=None) -> list[Tensor]:
    """Each rollout's weights over its window."""
    batch = collate(scored, list(range(len(scored))) if seeds is None else seeds)
    advantages = opd_advantage(batch.teacher_logprobs, batch.sampler_logprobs, batch.tokens.mask)
    measures = {name: advantages.abs() for name in weighting.measures}
    weights = Objective(weighting).weights(batch, advantages, progress, measures)
    assert not weights[~batch.tokens.mask].any()
    return [row[mask] for row, mask in zip(weights, batch.tokens.mask, strict=True)]


@pytest.fixture
def scored(make_rollouts) -> Callable[..., list[ScoredRollout]]:
    """Makes rollouts scored over a window, by a teacher that says −1, −2, −1, … of the whole response."""

    def make(window=lambda length: (0, length)) -> list[ScoredRollout]:
        rollouts = make_rollouts(8, seed=1, longest=30)
        windows = [window(len(rollout.response_ids)) for rollout in rollouts]
        return [
            ScoredRollout(rollout, start, stop, as_logprobs([-1 - t % 2 for t in range(start, stop)]))
            for rollout, (start, stop) in zip(rollouts, windows, strict=True)
        ]

    return make


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["first30", "last30", "middle30", "prefix_mask"])
def test_windowed_schemes_weigh_cut_rows_as_whole_ones(name, progress, scored):
    weighting = preset(name)
    window = weighting.window(progress)
    cut = weights_of(weighting, scored(window), progress)
    whole = weights_of(weighting, scored(), progress)
    for short, full in zip(cut, whole, strict=True):
        start, stop = window(len(full))
        assert torch.equal(short, full[start:stop])
        assert not torch.cat([full[:start], full[stop:]]).any()
        assert short.all()


@pytest.mark.parametrize("name", BUILT_IN)
def test_schemes_that_need_no_batch_weigh_each_row_alone(name, scored):
    weighting = preset(name)
    records = scored()
    together = weights_of(weighting, records)
    alone = [weights_of(weighting, [record], seeds=[seed])[0] for seed, record in enumerate(records)]
    same = all(torch.allclose(left, right, rtol=1e-6) for left, right in zip(together, alone, strict=True))
    assert same != weighting.needs_batch


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_scheme_gives_finite_detached_weights_of_zero_or_more(name, scored):
    for row in weights_of(preset(name), scored(), progress=0.5):
        assert row.isfinite().all()
        assert (row >= 0).all()
        assert not row.requires_grad


def test_a_scheme_is_given_its_own_parameters(scored):
    rows = scored()
    blended = weights_of(PrefixRatio(alpha=0.3, gamma=2.0), rows)
    ratio = weights_of(PrefixRatio(alpha=0.3), rows)
    assert_close(torch.cat(blended), 1 + 2 * torch.cat(ratio))
    for gamma in (0.0, 2.0):
        first = [row[0] for row in weights_of(Iw(gamma=gamma), rows)]
        assert first == [1 + gamma] * len(rows)
    half = Window(side="last", fraction=0.5)
    assert half.window(0.0)(11) == (5, 11)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda given: given.advantages[:, :1], "return weights"),
        (lambda given: [1.0], "returned list"),
        (lambda given: given.advantages * math.nan, "NaN"),
    ],
    ids=["wrong shape", "no tensor", "NaN"],
)
def test_a_scheme_that_returns_something_else_is_named(made, reason, scored):
    with pytest.raises(ConfigError, match=f"weighting=mine.*{reason}"):
        weights_of(Mine(made), scored())


def test_a_scheme_may_leave_junk_outside_the_mask(scored):
    uneven = Mine(lambda given: torch.where(given.mask, 2.0, math.nan))
    assert all((row == 2).all() for row in weights_of(uneven, scored()))
