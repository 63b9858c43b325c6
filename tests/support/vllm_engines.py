"""What tests of real vLLM engines share."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from iwopd.config import OptimConfig
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import sampling_logprobs
from iwopd.types import Prompt, Rollout, ScoredRollout


def logits_of(model: Any, rollout: Rollout) -> torch.Tensor:
    """[tokens, vocabulary] by the model's own forward."""
    ids = torch.tensor(rollout.ids())[None].long()
    with torch.no_grad():
        return model(ids).logits[0, -len(rollout.response_ids) - 1 : -1]


PROMPTS = [
    Prompt(str(index), random.Random(index).choices(range(40, 120), k=length), "")
    for index, length in enumerate([70, 5, 33, 12])
]


def load_student(folder: Path) -> Student:
    return Student(LanguageModel(AutoModelForCausalLM.from_pretrained(folder)), OptimConfig(lr=1e-3))


def disturb(student: Student, scale: float, seed: int = 0) -> None:
    """As if it had been trained a long way."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(scale * parameter.std() * torch.randn(parameter.shape, generator=generator))


def assert_likeliest_of(model: Any, scored: Sequence[ScoredRollout], k: int) -> None:
    """The k likeliest tokens of every place of a record, likeliest first, are the model's own to 1e-4 nats."""
    for record in scored:
        expected = logits_of(model, record.rollout)[record.start : record.stop].log_softmax(-1)
        ids, logprobs = (torch.from_numpy(each) for each in (record.teacher_topk_ids, record.teacher_topk_logprobs))
        assert ids.shape == (record.stop - record.start, k)
        assert all(len(set(row)) == k for row in ids.tolist())
        assert_close(logprobs, expected.topk(k).values, rtol=0, atol=1e-4)
        assert_close(logprobs, expected.gather(-1, ids.long()), rtol=0, atol=1e-4)
        targets = torch.from_numpy(record.rollout.response_ids)[record.start : record.stop].long()
        assert_close(
            torch.from_numpy(record.teacher_logprobs), expected.gather(-1, targets[:, None])[:, 0], rtol=0, atol=1e-4
        )


def assert_logprobs_of(model: Any, rollouts: list[Rollout], sampling: Sampling) -> None:
    for rollout in rollouts:
        expected = sampling_logprobs(logits_of(model, rollout), sampling)
        expected = expected.gather(-1, torch.tensor(rollout.response_ids).long()[:, None]).squeeze(-1)
        assert_close(torch.tensor(rollout.sampler_logprobs), expected, rtol=0, atol=1e-4)
