"""Schemes of other papers: the first k tokens, whole responses, what is unlikely to the teacher or to the student."""

import math
from dataclasses import replace

import pytest
import torch
from support.running import refused

from iwopd.numerics import WeightInput
from iwopd.weighting import Weighting
from iwopd.weighting.fire import Fire
from iwopd.weighting.first_k import FirstK
from iwopd.weighting.fixed_negative import FixedNegative
from iwopd.weighting.renio import Renio

LENGTHS = [9, 1, 6, 2]


def ragged(seed: int = 0) -> tuple[WeightInput, list[list[float]], list[list[float]]]:
    """Right-padded rows, and as lists: A_t and log π_T."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(max(LENGTHS)).expand(len(LENGTHS), -1)
    lengths = torch.tensor(LENGTHS)
    mask = time < lengths[:, None]
    advantages = torch.randn(mask.shape, generator=generator, dtype=torch.float64) * mask
    teacher = -3 * torch.rand(mask.shape, generator=generator, dtype=torch.float64) * mask

    def lists(values: torch.Tensor) -> list[list[float]]:
        return [row[:length].tolist() for row, length in zip(values, LENGTHS, strict=True)]

    return WeightInput(advantages, mask, time, lengths, teacher), lists(advantages), lists(teacher)


def weights_of(scheme: Weighting, given: WeightInput) -> list[list[float]]:
    found = scheme.weights(given)
    return [row[:length].tolist() for row, length in zip(found, LENGTHS, strict=True)]


@pytest.mark.parametrize("k", [1, 2, 6, 100])
def test_first_k_keeps_the_first_k_tokens_of_every_response(k: int) -> None:
    scheme = FirstK(k=k)
    assert weights_of(scheme, ragged()[0]) == [[float(t < k) for t in range(length)] for length in LENGTHS]
    assert [scheme.bounds(length, 0.5) for length in LENGTHS] == [(0, min(k, length)) for length in LENGTHS]


# ---------------------------------------------------------------------------------------------- renio


def test_renio_is_the_geometric_mean_of_student_over_teacher() -> None:
    given, advantages, _ = ragged()
    for found, row in zip(weights_of(Renio(), given), advantages, strict=True):
        ratios = [math.exp(-value) for value in row]
        assert found == pytest.approx([math.prod(ratios) ** (1 / len(ratios))] * len(row), rel=1e-12)


def test_renio_over_key_tokens_and_normalized_as_its_authors_have_it() -> None:
    given, advantages, _ = ragged(seed=3)
    raw = []
    for row in advantages:
        key = [min(-value, 1.2) for value in row if min(-value, 1.2) >= 0.9]
        raw.append(math.exp(sum(key) / len(key)) if key else 1.0)
    mean = sum(raw) / len(raw)
    scheme = Renio(threshold=0.9, clip=1.2, normalize=True)
    assert any(value == 1.0 for value in raw), "a response without key tokens"
    assert [row[0] for row in weights_of(scheme, given)] == pytest.approx([value / mean for value in raw], rel=1e-12)
    assert scheme.needs_batch
    assert not Renio().needs_batch


def test_renio_stays_finite_where_the_teacher_rules_a_token_out() -> None:
    given, _, _ = ragged()
    given = replace(given, advantages=(given.advantages - 1e4).float() * given.mask)
    assert Renio().weights(given)[given.mask].tolist() == pytest.approx([math.exp(20)] * sum(LENGTHS), rel=1e-6)


# ---------------------------------------------------------------------------------------------- fire


@pytest.mark.parametrize("share", [0.0, 0.2, 0.29, 0.5, 0.99])
def test_fire_leaves_out_the_least_likely_tokens_of_the_batch(share: float) -> None:
    given, _, teacher = ragged()
    count = math.floor(share * sum(LENGTHS) + 1e-9)
    lowest = sorted(value for row in teacher for value in row)[:count]
    expected = [[0.0 if value in lowest else 1.0 for value in row] for row in teacher]
    assert weights_of(Fire(share=share), given) == expected


def test_fire_leaves_out_whole_responses_as_its_authors_do() -> None:
    given, _, teacher = ragged()
    means = [sum(row) / len(row) for row in teacher]
    worst = means.index(min(means))
    found = weights_of(Fire(share=0.3, unit="responses"), given)
    assert [sum(row) for row in found] == [0.0 if row == worst else length for row, length in enumerate(LENGTHS)]


def test_fire_leaves_out_exactly_its_share_where_all_are_alike() -> None:
    given, _, _ = ragged()
    found = Fire(share=0.5).weights(replace(given, teacher_logprobs=torch.full_like(given.advantages, -1.0)))
    assert found[given.mask].tolist() == [0.0] * 9 + [1.0] * 9


# ---------------------------------------------------------------------------------------------- fixed_negative


@pytest.mark.parametrize(("threshold", "size"), [(0.5, 1.0), (0.2, 3.0), (1.0, 1.0)])
def test_fixed_negative_weighs_what_the_student_finds_unlikely(threshold: float, size: float) -> None:
    given, advantages, teacher = ragged()
    expected = [
        [size * (math.exp(said - gap) < threshold) for said, gap in zip(*rows, strict=True)]
        for rows in zip(teacher, advantages, strict=True)
    ]
    assert weights_of(FixedNegative(threshold=threshold, size=size), given) == expected


@pytest.mark.cli
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loss=reverse_kl", "weighting.scheme=fixed_negative: brings an advantage of its own"),
        ("loss.exopd_lambda=1.25", "loss.exopd_lambda=1.25: changes the advantage"),
    ],
)
def test_what_has_no_place_for_its_advantage_is_refused(
    override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "train", "weighting=fixed_negative", override)
