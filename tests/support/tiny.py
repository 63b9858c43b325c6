"""Tiny random models and plausible records, for tests of everything that computes."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from iwopd.config import OptimConfig
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.scoring.hf import HfTeacher
from iwopd.training.score import score
from iwopd.types import Rollout, ScoredRollout
from support.records import plain_rollout

VOCABULARY = 50


def make_model(seed: int = 0, *, vocabulary: int = VOCABULARY, autocast: bool = False) -> LanguageModel:
    # initializer_range makes distributions as peaked as a trained model's, so that a wrong place is a wrong number.
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(Qwen3ForCausalLM(config), autocast=autocast)


def make_student(seed: int = 0, *, micro_batch_tokens: int = 10**6, autocast: bool = False, **optim: Any) -> Student:
    """A student whose gradients are not clipped, unless `optim` says so."""
    options = {"lr": 1e-2, "grad_clip": None, "weight_decay": 0.0} | optim
    return Student(make_model(seed, autocast=autocast), OptimConfig(**options), micro_batch_tokens)


def make_ragged_rollouts(
    n: int, seed: int = 0, *, longest_prompt: int = 7, longest: int = 12, vocabulary: int = VOCABULARY
) -> list[Rollout]:
    """Rollouts of all lengths up to `longest`, of random tokens with random sampler log-probs."""
    drawn = random.Random(seed)
    rollouts = []
    for index in range(n):
        length = drawn.randint(1, longest)
        rollouts.append(
            plain_rollout(
                [drawn.randrange(vocabulary) for _ in range(drawn.randint(1, longest_prompt))],
                [drawn.randrange(vocabulary) for _ in range(length)],
                [-drawn.expovariate(0.3) for _ in range(length)],
                prompt_id=f"p{index}",
                finish_reason=drawn.choice(["stop", "length"]),
                sample=index % 2,
            )
        )
    return rollouts


def score_rollouts(
    rollouts: Sequence[Rollout],
    teacher: LanguageModel,
    window: Callable[[int], tuple[int, int]] = lambda length: (0, length),
    **options: Any,
) -> list[ScoredRollout]:
    """`options` are those of `iwopd.training.score`."""
    return score(HfTeacher(teacher, torch.device("cpu")), rollouts, window, **options)
