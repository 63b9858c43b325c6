"""Where tests find their files."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
SOURCE = REPOSITORY / "src" / "iwopd"
DATA = TESTS / "data"
GOLDEN = TESTS / "golden"
# Problems of our own in the forms of two public sets, AIME's and GSM8K's; rows of those stay out of the repository.
PROBLEMS, WORD_PROBLEMS = DATA / "problems.jsonl", DATA / "word_problems.jsonl"
SHARED = Path(os.environ.get("IWOPD_SHARED", REPOSITORY.parent / "shared")) / "data"
