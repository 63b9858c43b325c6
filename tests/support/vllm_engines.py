"""What tests of real vLLM engines share."""

import random
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
from iwopd.types import Prompt, Rollout


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


def assert_logprobs_of(model: Any, rollouts: list[Rollout], sampling: Sampling) -> None:
    for rollout in rollouts:
        expected = sampling_logprobs(logits_of(model, rollout), sampling)
        expected = expected.gather(-1, torch.tensor(rollout.response_ids).long()[:, None]).squeeze(-1)
        assert_close(torch.tensor(rollout.sampler_logprobs), expected, rtol=0, atol=1e-4)
