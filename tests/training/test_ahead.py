"""`rollout.ahead=1`: the next step's rollouts while this one is trained on; real runs, with servers that repeat."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import torch
from support.model_server import ModelServer
from support.running import SMALL, iwopd, refused, rows, start, wait_for_line, weights, without_times

pytestmark = pytest.mark.cli
AHEAD = (*SMALL, "rollout=vllm_server", "rollout.ahead=1", "data.batch_size=4", "eval.greedy=false")


@pytest.fixture(scope="module")
def server(smoke_models: dict[str, Path]) -> Iterator[ModelServer]:
    with ModelServer(smoke_models["student"]) as made:
        yield made


def train(server: ModelServer, folder: Path, *more: str) -> int:
    return iwopd("train", *AHEAD, f"rollout.urls=[{server.url}]", f"run.dir={folder}", *more)


@pytest.fixture(scope="module")
def finished(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead") / "run"
    assert train(server, folder) == 0
    return folder


def steps(folder: Path) -> list[dict]:
    return [row for row in rows(folder / "metrics.jsonl") if "train/loss" in row]


def test_each_step_but_the_first_trains_on_the_student_of_one_before(finished: Path) -> None:
    found = steps(finished)
    assert [row["train/staleness"] for row in found] == [0, 1, 1, 1]
    print([(row["train/importance_ratio_mean"], row["train/sampler_gap_mean"], row['sync/parity_max_gap']) for row in found])
