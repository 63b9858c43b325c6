"""The clipped surrogate and its denominators, against golden numbers and by hand."""

import json
import math

import pytest
import torch
from support.paths import GOLDEN
from torch import Tensor
from torch.testing import assert_close

from iwopd.numerics import iw_weights, loss_scale, policy_loss, policy_token_losses

CASES = json.loads((GOLDEN / "iw_opd_numerics.json").read_text())["cases"]
on_golden = pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed {case['seed']}")
on_schemes = pytest.mark.parametrize("scheme", ["uniform", "iw"])
EXACT = {"rtol": 1e-7, "atol": 1e-14}


def matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


class Golden:
    """One case of the released code as tensors, with room for padding that must not matter."""

    def __init__(self, case: dict, scheme: str, pad: tuple[int, int] = (0, 0), junk: float = 0.0):
        self.results = case["results"][scheme]
        self.pad, self.junk = pad, junk
        self.lengths = torch.tensor(case["lengths"])
        valid = torch.arange(len(case["advantages"][0])) < self.lengths[:, None]
        self.mask = torch.nn.functional.pad(valid, pad, value=False)
        self.new = self.padded(case["trainer_logprobs_new"]).requires_grad_()
        self.old = self.padded(case["trainer_logprobs_old"])
        self.sampler = self.padded(case["rollout_logprobs"])
        advantages = self.padded(case["advantages"])
        uniform = torch.where(self.mask, 1.0, torch.tensor(junk, dtype=torch.float64))
        self.weights = uniform if scheme == "uniform" else iw_weights(advantages, self.mask, case["gamma"])
        self.advantages = self.weights * advantages

    def padded(self, rows: list[list[float]]) -> Tensor:
        return torch.nn.functional.pad(matrix(rows), self.pad, value=self.junk)

    def loss(self, **options):
        return policy_loss(self.new, self.old, self.advantages, self.mask, sampler_logprobs=self.sampler, **options)


@on_golden
@on_schemes
def test_token_mean_equals_the_released_code(case, scheme):
    golden = Golden(case, scheme)
    expected = matrix([[golden.results["loss_token_mean_clipped_tis"]]])
    assert_close(golden.loss().loss.reshape(1, 1), expected, **EXACT)


@on_golden
@on_schemes
def test_gradient_equals_the_released_code(case, scheme):
    golden = Golden(case, scheme)
    golden.loss().loss.backward()
    assert_close(golden.new.grad, matrix(golden.results["grad_wrt_new_logprobs"]), **EXACT)


@on_golden
@on_schemes
def test_on_policy_loss_equals_the_released_code(case, scheme):
    golden = Golden(case, scheme)
    found = policy_loss(golden.old, golden.old, golden.advantages, golden.mask).loss
    assert found.item() == pytest.approx(golden.results["loss_token_mean_on_policy"], rel=1e-7)


@on_golden
@on_schemes
def test_sequence_mean_equals_the_released_code(case, scheme):
    golden = Golden(case, scheme)
    tokens = policy_token_losses(
        golden.new, golden.old, golden.advantages, golden.mask, sampler_logprobs=golden.sampler
    )
    scale, denominator = loss_scale(golden.weights, golden.mask, golden.lengths, "sequence")
    found = (tokens.losses * scale).sum() / denominator
    assert found.item() == pytest.approx(golden.results["loss_seq_mean_token_mean_clipped_tis"], rel=1e-7)


@on_golden
@on_schemes
def test_clip_fractions_equal_the_released_code(case, scheme):
    golden = Golden(case, scheme)
    metrics = golden.loss().metrics
    for name in ("clip_fraction", "clip_fraction_lower"):
        assert metrics[name] == pytest.approx(golden.results[name], rel=1e-7, abs=1e-12)


@on_golden
@on_schemes
@pytest.mark.parametrize("pad", [(0, 3), (2, 0), (1, 2)], ids=["right", "left", "both"])
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 3.0])
def test_what_stands_in_masked_places_reaches_neither_loss_nor_gradient(case, scheme, pad, junk):
    plain, golden = Golden(case, scheme), Golden(case, scheme, pad, junk)
    expected, found = plain.loss(), golden.loss()
    expected.loss.backward()
    found.loss.backward()
    assert_close(found.loss, expected.loss, **EXACT)
    assert found.metrics == pytest.approx(expected.metrics)
    assert_close(golden.new.grad, torch.nn.functional.pad(plain.new.grad, pad), **EXACT)


def test_teacher_equal_to_student_gives_no_gradient():
    logprobs = (-torch.rand(2, 5, dtype=torch.float64)).requires_grad_()
    mask = torch.ones(2, 5, dtype=torch.bool)
    policy_loss(logprobs, logprobs.detach() + 0.1, torch.zeros(2, 5, dtype=torch.float64), mask).loss.backward()
    assert not logprobs.grad.any()


def test_gradients_flow_to_the_new_logprobs_alone():
    new, old, advantages, sampler = (matrix([[value, value]]).requires_grad_() for value in (-1.0, -1.1, 0.5, -0.9))
    mask = torch.ones(1, 2, dtype=torch.bool)
    policy_loss(new, old, advantages, mask, sampler_logprobs=sampler).loss.backward()
    assert new.grad.all()
    assert old.grad is advantages.grad is sampler.grad is None


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient", "clipped"),
    [
        (2.0, 1.0, -2.0, -2.0, None),
        (2.0, 1.1, -2.2, -2.2, None),
        (2.0, 1.5, -2.6, 0.0, "clip_fraction"),  # gains from ρ end at 1 + clip_high
        (2.0, 0.5, -1.0, -1.0, None),
        (-2.0, 1.5, 3.0, 3.0, None),
        (-2.0, 0.5, 1.8, 0.0, "clip_fraction"),  # and at 1 − clip_low
        (-2.0, 3.9, 7.8, 7.8, None),
        (-2.0, 4.5, 8.0, 0.0, "clip_fraction_lower"),  # losses end at dual_clip · |A|
        (2.0, 100.0, -2.6, 0.0, "clip_fraction"),  # where A > 0 there is no such end
    ],
)
def test_surrogate_by_hand(advantage, ratio, loss, gradient, clipped):
    new = matrix([[math.log(ratio)]]).requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    options = {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 4.0}
    found = policy_loss(new, matrix([[0.0]]), matrix([[advantage]]), mask, **options)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(loss, rel=1e-12)
    assert new.grad.item() == pytest.approx(gradient, rel=1e-12)
    marks = {name: value for name, value in found.metrics.items() if name != "approx_kl"}
    assert marks == {name: float(name == clipped) for name in ("clip_fraction", "clip_fraction_lower")}


@pytest.mark.parametrize(
    ("gap", "cap", "correction"),
    [
        (0.0, 5.0, 1.0),
        (math.log(2), 5.0, 2.0),
        (math.log(9), 5.0, 5.0),
        (math.log(9), 2.0, 2.0),
        (-1.0, 5.0, 1 / math.e),
    ],
)
def test_importance_correction_is_the_ratio_up_to_its_cap(gap, cap, correction):
    old, mask = matrix([[-1.0]]), torch.ones(1, 1, dtype=torch.bool)
    found = policy_loss(old, old, matrix([[1.0]]), mask, sampler_logprobs=old - gap, importance_cap=cap).loss
    assert found.item() == pytest.approx(-correction, rel=1e-12)


@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_ratios_that_no_float_holds_stay_finite(gap):
    new = matrix([[gap]]).requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    found = policy_loss(new, matrix([[0.0]]), matrix([[-1.0]]), mask, sampler_logprobs=matrix([[gap]])).loss
    found.backward()
    assert found.isfinite()
    assert new.grad.isfinite().all()


def test_denominator_is_the_masks_count_unless_given():
    logprobs, mask = matrix([[0.0] * 4, [0.0] * 4]), torch.tensor([[True] * 4, [True, False, False, False]])
    ones = torch.ones_like(logprobs)
    assert policy_loss(logprobs, logprobs, ones, mask).loss.item() == pytest.approx(-1.0)
    assert policy_loss(logprobs, logprobs, ones, mask, denominator=20.0).loss.item() == pytest.approx(-0.25)


def test_an_empty_mask_gives_zero():
    logprobs = matrix([[-1.0, -2.0]]).requires_grad_()
    found = policy_loss(logprobs, logprobs.detach(), torch.ones_like(logprobs), torch.zeros(1, 2, dtype=torch.bool))
    found.loss.backward()
    assert found.loss.item() == 0
    assert not logprobs.grad.any()


def test_approx_kl_is_the_mean_of_old_minus_new():
    mask = torch.tensor([[True, True, False]])
    new, old = matrix([[-1.0, -2.0, -9.0]]), matrix([[-0.5, -1.0, -1.0]])
    assert policy_loss(new, old, torch.ones_like(new), mask).metrics["approx_kl"] == pytest.approx(0.75)


# Row 0: four tokens of a response of ten, two of them kept; row 1: one kept of two; row 2: none kept.
WEIGHTS = matrix([[2.0, 0.5, 0.0, 0.0], [0.0, 1.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
LENGTHS = torch.tensor([10, 2, 1])


@pytest.mark.parametrize(
    ("normalize", "row_scales", "denominator"),
    [("kept", [1.0, 1.0], 3), ("all", [1.0, 1.0], 13), ("sequence", [0.5, 1.0], 2)],
)
def test_denominators_by_hand(normalize, row_scales, denominator):
    scale, found = loss_scale(WEIGHTS, MASK, LENGTHS, normalize)
    kept = MASK & (WEIGHTS != 0)
    assert found == denominator
    assert scale[0][kept[0]].tolist() == [row_scales[0]] * 2
    assert scale[1][kept[1]].tolist() == [row_scales[1]]


@pytest.mark.parametrize("normalize", ["kept", "all", "sequence"])
def test_splitting_a_batch_adds_up_to_the_same_mean(normalize):
    losses = matrix([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, 0.0], [7.0, 0.0, 0.0, 0.0]]) * WEIGHTS * MASK
    whole, count = loss_scale(WEIGHTS, MASK, LENGTHS, normalize)
    parts = [loss_scale(WEIGHTS[rows], MASK[rows], LENGTHS[rows], normalize) for rows in ([0], [1, 2])]
    assert sum(part for _, part in parts) == count
    assert torch.equal(torch.cat([scale for scale, _ in parts]), whole)
    by_hand = {"kept": (2 + 1 + 6) / 3, "all": (2 + 1 + 6) / 13, "sequence": ((2 + 1) / 2 + 6) / 2}
    assert (losses * whole).sum().item() / count == pytest.approx(by_hand[normalize])


def test_a_scheme_may_name_the_tokens_it_keeps():
    """Weights may be too small for their dtype; the denominators are of the tokens, not of rounding."""
    flushed = torch.zeros_like(WEIGHTS)
    by_name = {"kept": 7, "all": 13, "sequence": 3}
    for normalize, denominator in by_name.items():
        scale, found = loss_scale(flushed, MASK, LENGTHS, normalize, MASK)
        assert found == denominator
        assert (scale[MASK] > 0).all()
    assert loss_scale(flushed, MASK, LENGTHS, "kept")[1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_large_batch_in_half_precision_has_a_finite_loss(dtype):
    """131,072 tokens of loss 1 add up to more than float16 holds, and bfloat16 stops counting at 256."""
    logprobs = torch.full((64, 2048), -2.0, dtype=dtype).requires_grad_()
    mask = torch.ones(64, 2048, dtype=torch.bool)
    found = policy_loss(logprobs, logprobs.detach() + 0.5, torch.full_like(mask, -1.0, dtype=dtype), mask, clip_low=1.0)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(math.exp(-0.5), rel=1e-6)
    assert found.metrics["approx_kl"] == pytest.approx(0.5)
    assert logprobs.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ratio", [14.9, -14.9, 30.0])
@pytest.mark.parametrize("advantage", [0.0, 1.5, -1.5])
@pytest.mark.parametrize("gap", [0.0, 15.0, -15.0])
def test_half_precision_gives_what_float64_gives(dtype, ratio, advantage, gap):
    """exp(14.9) is infinite in float16, and 0 times that is not a number."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    given = [torch.full((1, 3), value, dtype=dtype) for value in (ratio, 0.0, advantage, -gap)]
    found, exact = (
        policy_loss(new.requires_grad_(), old, signal, mask, sampler_logprobs=sampler)
        for new, old, signal, sampler in (given, [value.detach().double() for value in given])
    )
    assert found.loss.isfinite()
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5)
    assert found.metrics == pytest.approx(exact.metrics, rel=1e-5)
    found.loss.backward()
    assert given[0].grad.isfinite().all()
