"""Problems whose answers are programs, in the three forms of the field."""

import os
from typing import Any

import pytest

from iwopd.evaluation.grading import CodeGrader, code_rows
from iwopd.types import Prompt

NATIVE = {
    "task_id": "HumanEval/900",
    "prompt": 'def add(a, b):\n    """Sum."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "base_input": [[1, 2]],
    "plus_input": [[3, 4], [0.1, 0.2]],
    "atol": 1e-6,
}


HUB = {
    "task_id": "HumanEval/901",
    "prompt": NATIVE["prompt"],
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "import numpy\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(3, 4) == 7\n",
}


MBPP = {
    "task_id": 902,
    "prompt": "Write a function to add two numbers.",
    "code": "def add(a, b):\n    return a + b\n",
    "test_imports": [],
    "test_list": ["assert add(1, 2) == 3"],
    "test": "assert add(1, 2) == 3\nassert add(3, 4) == 7\n",
}


def one_process(**options: Any) -> CodeGrader:
    """A grader as on a machine with one core: every program meets the processes that the one before it has met."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda process: {0})
        return CodeGrader(**options)


def prompt_of(row: dict) -> Prompt:
    from iwopd.config import BenchmarkConfig

    (made,) = code_rows([row], BenchmarkConfig(path="x.jsonl"))
    return Prompt("p", [1], "", row=made)
