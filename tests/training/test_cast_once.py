"""Under autocast, weights are cast once per update, and what is trained is what casts per micro-batch train."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from iwopd.losses.policy_gradient import PolicyGradient
from iwopd.losses.reverse_kl import ReverseKl
from iwopd.models.student import Student
from iwopd.training import update as module
from iwopd.training.objective import Objective
from iwopd.types import Signal
from iwopd.weighting.iw import Iw

MICRO_BATCHES = 4


class Casts(TorchDispatchMode):
    """Counts how often each weight is cast, by its address."""

    def __init__(self, student: Student):
        super().__init__()
        self.counts = {parameter.data_ptr(): 0 for parameter in student.parameters() if parameter.dim() == 2}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.counts:
            self.counts[args[0].data_ptr()] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def given(make_rollouts, make_scored, tiny_model, tiny_student):
    records = make_scored(make_rollouts(12, seed=3), tiny_model(1), signal=Signal("full"), student=tiny_student(0))
    return records, {"": tiny_model(1).head}


def train(student: Student, given, loss=None) -> int:
    """One update; its micro-batches."""
    records, heads = given
    groups: list[int] = []
    module.update(
        student,
        records,
        Objective(Iw(), loss or PolicyGradient()),
        seeds=range(len(records)),
        teacher_heads=heads,
        advance=lambda *_: groups.append(1),
    )
    assert len(groups) >= MICRO_BATCHES
    return len(groups)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("loss", [PolicyGradient(), ReverseKl()], ids=lambda loss: loss.kind)
def test_weights_are_those_of_casts_per_micro_batch(loss, checkpointed, tiny_student, given, monkeypatch) -> None:
    def trained() -> dict[str, torch.Tensor]:
        student = tiny_student(0, micro_batch_tokens=40, autocast=True)
        if checkpointed:
            student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        train(student, given, loss)
        return dict(student.model.named_parameters())

    found = trained()
    monkeypatch.setattr(module, "cast_once", lambda *_: nullcontext())
    slow, before = trained(), dict(tiny_student(0).model.named_parameters())
    assert all(torch.equal(found[name], slow[name]) for name in slow)
    assert any(not torch.equal(slow[name], before[name]) for name in slow)


def test_a_weight_is_cast_once_and_that_of_the_head_once_per_micro_batch(tiny_student, given) -> None:
    student = tiny_student(0, micro_batch_tokens=40, autocast=True)
    head = student.lm.output_embeddings.weight.data_ptr()
    with Casts(student) as casts:
        micro_batches = train(student, given)
    assert casts.counts.pop(head) == micro_batches
    casts.counts.pop(student.model.get_input_embeddings().weight.data_ptr(), None)  # looked up, never cast
    assert set(casts.counts.values()) == {1}
