"""How a toy model learns to read the answer in its prompt."""

import math
import random
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from iwopd.toy.hints import HintedRecipe, hinted
from iwopd.toy.task import Noise, make_problem, write_response
from iwopd.toy.training import Advance


def train_hinted(recipe: HintedRecipe, base: Path, folder: Path, advance: Advance) -> None:
    """Train the model in `base` further, and save it with its tokenizer to `folder`."""
    transformers_logging.disable_progress_bar()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    rng, warmup = random.Random(recipe.seed), 20
    for step in range(recipe.steps):
        share = min(1.0, (step + 1) / warmup) * (0.1 + 0.9 * (1 + math.cos(math.pi * step / recipe.steps)) / 2)
        optimizer.param_groups[0]["lr"] = recipe.lr * share
        ids, labels = _batch(recipe, tokenizer, rng)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        advance(step + 1, recipe.steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batch(
    recipe: HintedRecipe,
    tokenizer: Any,  # noqa: ANN401  transformers types what it returns as everything it could be
    rng: random.Random,
) -> tuple[Any, Any]:
    """Token ids and labels ``[batch, time]``; prompts and padding are labelled -100."""
    task, rows = recipe.base.task, list[tuple[list[int], int]]()
    for _ in range(recipe.batch_size):
        problem, shown = make_problem(task, rng), rng.random() < 0.5
        response = write_response(problem, task, rng, Noise() if shown else recipe.base.noise)
        asked = hinted(problem.prompt, problem.answer) if shown else problem.prompt
        chat = [{"role": "user", "content": asked}]
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
