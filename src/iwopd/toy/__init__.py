"""A task, a tokenizer and two small models that are made on first use; addressed as toy://VARIANT[/ROLE].

Outside this package only `iwopd.data` (rows) and `iwopd.assembly` (model folders) know the scheme; everything after
them sees rows like any others and model folders in HF format.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

from iwopd.errors import ConfigError
from iwopd.toy.task import TEST_PROBLEMS, TRAIN_PROBLEMS, Noise, Task, problems

Value = TypeVar("Value")
SCHEME = "toy://"
STANDARD, SMOKE = Task(), Task(nodes=5, letters=8, min_depth=3, max_depth=4)
TASKS: Mapping[str, Task] = MappingProxyType({"standard": STANDARD, "smoke": SMOKE})
_problems = cache(problems)


def is_toy(path: str) -> bool:
    """True for an address of this package."""
    return path.startswith(SCHEME)


def lookup(key: str, path: str, known: Mapping[str, Value]) -> Value:
    """What `path` names among the `known` addresses (without the scheme).

    Raises:
        ConfigError: names `key`, the path and what there is.
    """
    name = path.removeprefix(SCHEME)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        listed = ", ".join(SCHEME + entry for entry in known)
        raise ConfigError(
            f"{key}={path}: no such toy; {f'did you mean {SCHEME}{near[0]}? ' if near else ''}use {listed}"
        )
    return known[name]


def toy_rows(key: str, path: str, split: str) -> list[dict[str, Any]]:
    """Rows ``{id, prompt, answer}`` of a toy dataset; split is train or test.

    Raises:
        ConfigError: unknown variant or split.
    """
    task = lookup(key, path, TASKS)
    if split not in ("train", "test"):
        prefix = key.rpartition(".")[0]
        raise ConfigError(f"{prefix}.split={split}: {path} has no such split; use train or test")
    count = TRAIN_PROBLEMS if split == "train" else TEST_PROBLEMS
    return [
        {"id": f"{split}-{index}", "prompt": problem.prompt, "answer": problem.answer}
        for index, problem in enumerate(_problems(task, split, count))
    ]


__all__ = ["SCHEME", "SMOKE", "STANDARD", "TASKS", "Noise", "Task", "is_toy", "lookup", "toy_rows"]
