"""What every test finds: one thread, settings of hypothesis, and fixtures that make models and records.

Imports of what loads torch stand in the fixtures: pytest-xdist's own process, which runs no tests, reads this file too.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from iwopd.runs.interrupts import STOPPING
from iwopd.toy.models import ensure_models
from iwopd.types import Rollout, ScoredRollout

if TYPE_CHECKING:
    from iwopd.models.language_model import LanguageModel
    from iwopd.models.student import Student

pytest_plugins = ["support.tiers"]

# The same examples at every run, and no limit on the time of one.
settings.register_profile("repeatable", derandomize=True, max_examples=40, deadline=None, database=None)
settings.load_profile("repeatable")

# The tensors are too small to share: for torch, which reads it as it loads, and for runs in this process, which set
# their number of threads.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _signals_stay_as_they_were() -> Iterator[None]:
    """What a test started later in this process would inherit."""
    before = [signal.getsignal(number) for number in STOPPING]
    yield
    assert [signal.getsignal(number) for number in STOPPING] == before


@pytest.fixture(scope="session")
def tiny_model() -> "Callable[..., LanguageModel]":
    """Makes random Qwen3 models in float32: tiny_model(seed, vocabulary=…, autocast=…)."""
    from support.tiny import make_model

    return make_model


@pytest.fixture(scope="session")
def tiny_student() -> "Callable[..., Student]":
    """Makes students of such models: tiny_student(seed, micro_batch_tokens=…, autocast=…, lr=…)."""
    from support.tiny import make_student

    return make_student


@pytest.fixture(scope="session")
def make_rollouts() -> Callable[..., list[Rollout]]:
    """Makes ragged rollouts: make_rollouts(n, seed, longest_prompt=…, longest=…, vocabulary=…)."""
    from support.tiny import make_ragged_rollouts

    return make_ragged_rollouts


@pytest.fixture(scope="session")
def make_scored() -> Callable[..., list[ScoredRollout]]:
    """Scores rollouts with a model: make_scored(rollouts, teacher, window, student=…, signal=…)."""
    from support.tiny import score_rollouts

    return score_rollouts


@pytest.fixture(scope="session")
def smoke_models() -> dict[str, Path]:
    """The smallest toy pair, by role; made once, in the user's cache."""

    @contextmanager
    def no_progress(title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: None

    return ensure_models({role: f"toy://smoke/{role}" for role in ("student", "teacher")}, no_progress)
