"""The wheel with what it requires and no more, away from the repository; `make test-install` fetches that."""

import subprocess
import sys

import pytest
from support.paths import REPOSITORY


@pytest.mark.process
def test_the_wheel_works_alone(smoke_models: object) -> None:
    script = REPOSITORY / "scripts" / "check_install.py"
    done = subprocess.run([sys.executable, str(script), "--linked"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok: iwopd ") == 3
