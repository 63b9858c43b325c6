"""Weights that rise with position."""

import math

import pytest
import torch

from iwopd.numerics import WeightInput
from iwopd.weighting.pw import Pw


@pytest.mark.parametrize("options", [{}, {"minimum": 0.0, "middle": 0.6, "scale": 0.02}], ids=["preset", "steep"])
def test_pw_equals_a_plain_double_loop(options: dict[str, float]) -> None:
    lengths, start = [9, 4, 1], 1  # rows that are cut to a window which starts at the second token
    positions = start + torch.arange(8).expand(3, -1)
    mask = positions < torch.tensor(lengths)[:, None]
    values = torch.zeros(mask.shape, dtype=torch.float64)
    scheme = Pw(**options)
    found = scheme.weights(WeightInput(values, mask, positions, torch.tensor(lengths), values))
    for row, length in enumerate(lengths):
        for t in range(start, length):
            place = (t + 1 - 0.5) / length
            rise = 1 / (1 + math.exp(-(place - scheme.middle) / scheme.scale))
            assert found[row, t - start].item() == pytest.approx(scheme.minimum + (1 - scheme.minimum) * rise, rel=1e-6)


def test_pw_rises_from_its_minimum_to_one() -> None:
    mask, values = torch.ones(1, 1000, dtype=torch.bool), torch.zeros(1, 1000, dtype=torch.float64)
    [row] = Pw().weights(WeightInput(values, mask, torch.arange(1000)[None], torch.tensor([1000]), values)).tolist()
    assert row == sorted(row)
    assert row[0] == pytest.approx(0.25, abs=0.04)
    assert row[-1] == pytest.approx(1, abs=0.001)
