"""Imports stand at the top of files; one within a function has a reason beside it."""

import ast
from functools import cache
from pathlib import Path

from support.paths import SOURCE

MOST = 25


@cache
def within_functions(file: Path) -> list[int]:
    """Line numbers, counted from 1."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = {each for node in functions for each in ast.walk(node) if isinstance(each, ast.Import | ast.ImportFrom)}
    return sorted(each.lineno for each in found)


def test_few_imports_stand_within_functions() -> None:
    found = [f"{file.relative_to(SOURCE)}:{line}" for file in SOURCE.rglob("*.py") for line in within_functions(file)]
    assert found, "nothing was read"
    assert len(found) <= MOST, "\n".join(found)


def test_each_says_why() -> None:
    """On its line, on the first of its block, or as the package it is of need not be installed; training.py of the toys
    is part of a cache's key."""
    for file in SOURCE.rglob("*.py"):
        lines = file.read_text(encoding="utf-8").splitlines()
        if file == SOURCE / "toy" / "training.py":
            continue
        for line in within_functions(file):
            optional = "except ModuleNotFoundError" in "".join(lines[line : line + 2])
            assert "  # " in lines[line - 1] or optional, f"{file}:{line}: {lines[line - 1].strip()}"


def test_one_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("import a\n\ndef f():\n    import b\n\n    async def g():\n        from c import d\n")
    assert within_functions(file) == [4, 7]
