"""Tiers of tests, by what a test starts; `make test-fast` runs the first two.

A test is `unit` unless its nearest mark, its own or its module's, names another tier. One that starts more than its
tier allows fails and says which mark it needs: commands are not `unit`, trainings and processes are `process`. What
takes about a second or more for another reason is marked by hand.
"""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TIERS = ("unit", "cli", "process", "vllm", "browser")  # their meaning: pyproject.toml
_running = "process"  # the tier of the test under way


def pytest_configure() -> None:
    sys.addaudithook(_check_process)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test exactly one tier, and lets files with slow tests come first, so that workers end together."""
    nearest = {item: next((mark.name for mark in item.iter_markers() if mark.name in TIERS), "unit") for item in items}
    slowest: dict[Path, int] = {}
    for item, name in nearest.items():
        for node in item.listchain():
            node.own_markers = [mark for mark in node.own_markers if mark.name not in TIERS]
        item.add_marker(name)
        slowest[item.path] = max(slowest.get(item.path, 0), TIERS.index(name))
    items.sort(key=lambda item: -slowest[item.path])


def pytest_collection_finish() -> None:
    """What the imports made stays: no collection of garbage need look through it again."""
    gc.freeze()


def tier(item: pytest.Item) -> str:
    return next(mark.name for mark in item.iter_markers() if mark.name in TIERS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _running
    _running = tier(item)
    try:
        return (yield)
    finally:
        _running = "process"


def check_command() -> None:
    """A command of the program is about to run in this process."""
    assert _running != "unit", "a test that runs a command needs @pytest.mark.cli"


def check_training() -> None:
    """A training in this process has ended."""
    assert _running not in ("unit", "cli"), "a test that trains needs @pytest.mark.process"


def _check_process(event: str, arguments: tuple[Any, ...]) -> None:
    """Of Python, that is: libraries ask `git` and `uname`, and whichever test comes first has the toy models made."""
    if event == "subprocess.Popen" and arguments[0] == sys.executable and _running in ("unit", "cli"):
        assert "iwopd.toy.models" in arguments[1], "a test that starts a process needs @pytest.mark.process"
