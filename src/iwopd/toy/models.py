"""The toy models: trained from scratch on first use, cached in HF format by a hash of what made them."""

import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock

from iwopd.errors import ModelError
from iwopd.toy import SCHEME, SMOKE, STANDARD, Noise, Task, lookup
from iwopd.toy.task import make_problem, write_response

Advance = Callable[[int, int], None]
Stage = Callable[[str], AbstractContextManager[Advance]]


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


CLEAN, WEAK, LATE = Noise(), Noise(plan=0.3, execution=0.05), Noise(execution=0.25)
TEACHER = ModelRecipe(STANDARD, CLEAN, width=64, layers=3, heads=2, steps=900, lr=4e-3, seed=1)
STUDENT = replace(TEACHER, noise=WEAK, steps=800, seed=2)
# Few seeds learn the look-up in so few steps; this one does, with clean traces and with weak ones.
SMOKE_TEACHER = ModelRecipe(SMOKE, CLEAN, width=48, layers=2, heads=4, steps=450, lr=6e-3, seed=3)
RECIPES: Mapping[str, ModelRecipe] = MappingProxyType(
    {
        "standard/teacher": TEACHER,
        "standard/student": STUDENT,
        "cross_scale/student": replace(STUDENT, width=48, steps=900),
        "late_errors/student": replace(STUDENT, noise=LATE),
        "smoke/teacher": SMOKE_TEACHER,
        "smoke/student": replace(SMOKE_TEACHER, noise=WEAK),
    }
)


def check_model(key: str, path: str) -> None:
    """Raise ConfigError unless `path` names a toy model."""
    lookup(key, path, RECIPES)


def ensure_models(paths: Mapping[str, str], stage: Stage) -> dict[str, Path]:
    """Folders of toy models, made first where they are not cached: at the same time, one process and one core each.

    Args:
        paths: toy addresses by the setting they came from.
        stage: from a title to a context manager that yields an `Advance` callback.

    Raises:
        ConfigError: a path names no toy model.
        ModelError: making one failed.
    """
    folders = {key: cached_folder(lookup(key, path, RECIPES), path) for key, path in paths.items()}
    missing = sorted({paths[key] for key, folder in folders.items() if not is_made(folder)})
    makers = [_Maker(path, stage) for path in missing]
    try:
        with ThreadPoolExecutor(max_workers=max(1, len(makers))) as pool:
            list(pool.map(_Maker.wait, makers))
    finally:
        for maker in makers:
            maker.process.terminate()
    return folders


class _Maker:
    """Another process that makes one model, and its progress."""

    def __init__(self, path: str, stage: Stage):
        self.path = path
        self.stage = stage
        self.process = subprocess.Popen(
            [sys.executable, "-m", "iwopd.toy.models", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # one core each, and the same sums on any machine
        )

    def wait(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        with self.stage(f"making {self.path}") as advance:
            for line in self.process.stdout:
                done, total = map(int, line.split())
                advance(done, total)
        if self.process.wait() != 0:
            reason = (self.process.stderr.read().strip().splitlines() or [f"exit status {self.process.returncode}"])[-1]
            raise ModelError(f"{self.path}: could not be made: {reason}; see {cache_folder()}")


def make_model(path: str, advance: Advance) -> None:
    """Make a toy model unless it is cached; safe when two processes ask at once."""
    recipe = RECIPES[path.removeprefix(SCHEME)]
    folder = cached_folder(recipe, path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if is_made(folder):
            return
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            train_model(recipe, draft, advance)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def is_made(folder: Path) -> bool:
    """True for a cached model; it is whole, because it was renamed into place."""
    return (folder / "config.json").exists()


def cached_folder(recipe: ModelRecipe, path: str) -> Path:
    """Where a model is cached."""
    return cache_folder() / f"{path.removeprefix(SCHEME).replace('/', '-')}-{fingerprint(recipe)}"


def cache_folder() -> Path:
    """$IWOPD_CACHE, else iwopd/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("IWOPD_CACHE") or Path(base) / "iwopd") / "toy"


def fingerprint(recipe: ModelRecipe) -> str:
    """A hash of the recipe and of the code that carries it out."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for name in ("task.py", "tokenizer.py", "models.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:12]


def train_model(recipe: ModelRecipe, folder: Path, advance: Advance) -> None:
    """Train by next-token prediction on responses, and save model, tokenizer and generation config to `folder`."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging as transformers_logging

    from iwopd.toy.tokenizer import make_tokenizer

    transformers_logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
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


if __name__ == "__main__":
    make_model(sys.argv[1], lambda done, total: print(done, total, flush=True))
