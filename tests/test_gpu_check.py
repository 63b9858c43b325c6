"""scripts/gpu_check.py at tiny sizes: it must work on the day that a GPU is lent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import REPOSITORY

PARTS = ("numerics", "update", "kernels", "scoring", "rollout", "fsdp")


@pytest.mark.process
def test_its_parts_run(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "scripts/gpu_check.py", "--cpu", "--quick", "--parts", *PARTS, "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    report = json.loads(out.read_text())
    assert done.returncode == 0, done.stderr[-3000:]
    assert report == json.loads(done.stdout)
    assert all(report[part]["ok"] for part in PARTS)
    rows = {name: row for name, row in report["update"].items() if isinstance(row, dict)}
    # A CPU has not all kernels of attention; a way that fails leaves the others.
    assert [name for name, row in rows.items() if "error" in row] == ["2 x 64, attention CUDNN_ATTENTION"]
    assert report["fsdp"]["weights_rel"] < 1e-6
