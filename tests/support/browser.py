"""The browser that reports are read in; tests that need it are marked `browser`, see `make test-browser`."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """$CHROMIUM, or the one on the PATH; without any the test fails: not run must not look like passed."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("there is no chromium: run `make test-browser` as root, or install it")
    return found
