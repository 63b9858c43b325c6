"""Ten interruptions at random moments: `scripts/campaign.py`, as it is run for hundreds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.running import ONE_THREAD

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("smoke_models")]


def test_ten_interruptions_lose_nothing(tmp_path: Path) -> None:
    """Resumed after each, runs end in the weights and metrics of one that was never interrupted."""
    options = ["--kills", "10", "--minutes", "4", "--seed", "7", "--preload", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "campaign.py"), *options, "--work", str(tmp_path)],
        capture_output=True,
        text=True,
        env=ONE_THREAD,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "campaign.json").read_text())
    assert len(found["interruptions"]) >= 10
    assert sum(run["resumed"] for run in found["runs"]) >= 3
    assert all(run["same_weights"] for run in found["runs"])
