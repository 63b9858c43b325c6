"""Sampling in bfloat16 on a CPU: what spares time changes no token and no log-prob."""

from contextlib import nullcontext
from typing import Any

import numpy
import pytest
import torch
from transformers import DynamicCache

from iwopd import _compat
from iwopd.models.packed import packed
from iwopd.rollout import decoding
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.types import Prompt

PROMPTS = [Prompt(str(length), list(range(1, length + 1)), "") for length in (3, 5, 9)]
PACKED = _compat.onednn_pack() is not None  # this CPU has products in bfloat16


def answers(student) -> list[tuple[Any, Any]]:
    made = HfEngine(student.lm, []).generate(PROMPTS, Sampling(n=2, max_tokens=24), seed=1, stream=0)
    return [(each.response_ids, each.sampler_logprobs) for each in made]


def bfloat16_student(tiny_student):
    student = tiny_student(0)
    student.lm.model.to(torch.bfloat16)
    return student


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
def test_samples_are_those_of_plain_products_and_a_plain_cache(autocast, tiny_student, monkeypatch) -> None:
    student = tiny_student(0, autocast=True) if autocast else bfloat16_student(tiny_student)
    found = answers(student)
    monkeypatch.setattr(decoding, "packed", lambda lm: nullcontext())
    monkeypatch.setattr(decoding, "new_cache", lambda lm: DynamicCache(config=lm.model.config))
    for own, slow in zip(found, answers(student), strict=True):
        assert all(map(numpy.array_equal, own, slow))


def test_under_autocast_keys_and_values_are_bfloat16(tiny_student) -> None:
    caches = {}
    for autocast in (False, True):
        lm = tiny_student(0, autocast=autocast).lm
        with decoding.decoding_context(lm):
            made = decoding.Decoding(lm, [[1, 2, 3]])
            made.first_logits()
        caches[autocast] = {layer.keys.dtype for layer in made.cache.layers}
    assert caches == {False: {torch.float32}, True: {torch.bfloat16}}


@pytest.mark.process
def test_a_token_step_casts_and_packs_no_weight(tiny_student) -> None:
    student = tiny_student(0, autocast=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        answers(student)
    layers = [each for each in student.model.modules() if type(each) is torch.nn.Linear]
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts.get("mkldnn::_reorder_linear_weight", 0) == PACKED * len(layers)
    assert counts.get("mkldnn::_linear_pointwise", 0) == PACKED * 24 * len(layers)
    shapes = {tuple(each.weight.shape) for each in layers}
    casts = [event for event in profiler.events() if event.name == "aten::_to_copy"]
    assert sum(tuple(event.input_shapes[0]) in shapes for event in casts) == len(layers)


def test_layers_are_as_before_after_the_block(tiny_student) -> None:
    lm = tiny_student(0, autocast=True).lm

    def interrupted() -> None:
        with packed(lm):
            assert ("forward" in vars(lm.output_embeddings)) == PACKED
            raise InterruptedError

    with pytest.raises(InterruptedError):
        interrupted()
    assert not any("forward" in vars(each) for each in lm.model.modules())


def test_float32_is_left_alone(tiny_student) -> None:
    lm = tiny_student(0).lm
    with packed(lm):
        assert not any("forward" in vars(each) for each in lm.model.modules())
