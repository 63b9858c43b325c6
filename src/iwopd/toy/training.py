"""How a toy model is trained. Its cache is keyed by this file's content: an edit here makes the models anew."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwopd.toy.task import Noise, Task, make_problem, write_response

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class ModelRecipe:
    """Everything a toy model is made from; a cached model is found by the hash of it."""

    task: Task
    noise: Noise
    width: int
    layers: int
    heads: int
    steps: int
    lr: float
    seed: int
    head_dim: int = 32  # vLLM's CPU attention has no kernel for smaller ones but 16-aligned sizes from 32
    key_value_heads: int = 2
    batch_size: int = 32


def train_model(recipe: ModelRecipe, folder: Path, advance: Advance) -> None:
    """Train by next-token prediction on responses, and save model, tokenizer and generation config to `folder`."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging as transformers_logging

    from iwopd.toy.tokenizer import make_tokenizer

    transformers_logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    special: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=2 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        tie_word_embeddings=False,
        **special,
    )
    rng = random.Random(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Qwen3ForCausalLM(config)
        _initialise(model, recipe.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = 50
    for step in range(recipe.steps):
        done = max(0, step - warmup) / max(1, recipe.steps - warmup)
        share = min(1.0, (step + 1) / warmup) * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
        optimizer.param_groups[0]["lr"] = recipe.lr * share
        ids, labels = _batch(recipe, tokenizer, rng)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        advance(step + 1, recipe.steps)

    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, **special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _initialise(model: Any, layers: int) -> None:
    """Wider than transformers' std 0.02, with which the look-up is not learned in a thousand steps."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_tokens" in name:
                weight.normal_(0, 0.5)
            elif weight.dim() == 2:
                depth = math.sqrt(2 * layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                weight.normal_(0, 0.5 / math.sqrt(weight.shape[1]) / depth)


def _batch(recipe: ModelRecipe, tokenizer: Any, rng: random.Random) -> tuple[Any, Any]:
    """Token ids and labels ``[batch, time]``; prompts and padding are labelled -100."""
    import torch

    rows: list[tuple[list[int], int]] = []
    for _ in range(recipe.batch_size):
        problem = make_problem(recipe.task, rng)
        response = write_response(problem, recipe.task, rng, recipe.noise)
        chat = [{"role": "user", "content": problem.prompt}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.encode(prompt + response + tokenizer.eos_token, add_special_tokens=False)
        rows.append((whole, len(whole) - len(response) - 1))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, (tokens, start) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, start : len(tokens)] = torch.tensor(tokens[start:])
    return ids, labels
