"""Where tests find their files."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
DATA = TESTS / "data"
GOLDEN = TESTS / "golden"
# Rows of public benchmarks, which stay out of the repository.
SHARED = Path(os.environ.get("IWOPD_SHARED", REPOSITORY.parent / "shared")) / "data"
