"""What a checkpoint holds of the optimiser: whenever it is written, training continues as if it had not been."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iwopd.models.sharding import load_optimizer, save_optimizer
from iwopd.models.student import Student


def step(student: Student, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    student.apply_gradients(1.0)
    student.clear_gradients()


def weights(student: Student) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_checkpoint_changes_nothing_that_follows(
    steps_before: int, tiny_student: Callable[..., Student], tmp_path: Path
) -> None:
    plain, saved, resumed = (tiny_student(0) for _ in range(3))
    for student in (plain, saved, resumed):
        for seed in range(steps_before):
            step(student, seed)
    save_optimizer(saved.model, saved.optimizer, saved.updates, tmp_path)
    resumed = Student(resumed.lm, resumed.settings)
    resumed.updates = load_optimizer(resumed.model, resumed.optimizer, tmp_path)
    for student in (plain, saved, resumed):
        for seed in (7, 8):
            step(student, seed)
    assert torch.equal(weights(saved), weights(plain))
    assert torch.equal(weights(resumed), weights(plain))
