"""The benchmarks of scripts/ with --quick: that they run, never how fast."""

import importlib.util
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support.paths import REPOSITORY

from iwopd.rollout import decoding


def quick(script: str, *arguments: str) -> dict[str, Any]:
    """The document that a benchmark prints."""
    command = [sys.executable, f"scripts/{script}.py", "--quick", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.process
def test_steps_and_updates_are_compared_with_trl_where_that_is_installed() -> None:
    peers = ["trl", "trl_alone"] if importlib.util.find_spec("trl") else []
    [found] = quick("bench_vs_trl", "--sides", *peers, "hf", "alone").values()
    assert list(found) == [*peers, "hf", "alone"]
    for own in found.values():
        assert own["tokens"] == 4 * 8
        assert own["seconds"] > 0
        assert own["mib"] > 100


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], dict[str, Any]]:
    """The document that a benchmark prints which leaves this process as it was, and so needs none of its own."""

    def run(script: str) -> dict[str, Any]:
        file = REPOSITORY / "scripts" / f"{script}.py"
        monkeypatch.syspath_prepend(file.parent)
        monkeypatch.setattr(sys, "argv", [file.name, "--quick"])
        capsys.readouterr()
        try:
            runpy.run_path(str(file), run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                pytest.fail(capsys.readouterr().err[-3000:])
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.process
def test_caches_are_compared(here: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "new_cache", decoding.new_cache)  # as it is put back
    assert set(here("bench_cache")["tiny"]) == {"with room", "copied"}


@pytest.mark.process
def test_a_save_is_compared_with_plain_files(here: Callable[[str], dict[str, Any]]) -> None:
    [found] = here("bench_save").values()
    assert found["bytes"] > 2**20
    assert 0 < found["seal"] < found["save"]
    assert found["plain"] > 0
