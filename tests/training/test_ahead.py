"""`rollout.ahead=1`: the next step's rollouts while this one is trained on; real runs, with a server that repeats."""

import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from support.model_server import ModelServer
from support.running import SMALL, iwopd, refused, rows, start, wait_for_line, weights, without_times
from support.servers import Gate

from iwopd.config import HfRolloutConfig
from iwopd.rollout.base import Progress, Sampling, UnderWay, no_progress
from iwopd.rollout.fake import FakeEngine
from iwopd.rollout.horizon import horizon_tokens
from iwopd.rollout.vllm_server import VllmServerEngine
from iwopd.scoring.fake import FakeTeacher
from iwopd.training.ahead import FILE, Rollouts
from iwopd.training.objective import Objective
from iwopd.training.schedule import Schedule
from iwopd.training.state import State
from iwopd.types import Prompt, Rollout
from iwopd.weighting import SCHEMES

AHEAD = (
    *(*SMALL, "rollout=vllm_server", "rollout.ahead=1", "rollout.http.backoff_s=0.01", "rollout.parity.prompts=1"),
    *("data.batch_size=4", "rollout.max_tokens=12", "eval.greedy=false", "eval.benchmarks.smoke.limit=2"),
)


@pytest.fixture(scope="module")
def server(smoke_models: dict[str, Path]) -> Iterator[ModelServer]:
    with ModelServer(smoke_models["student"]) as made:
        yield made


def settings(url: str, folder: Path, *more: str) -> list[str]:
    return ["train", *AHEAD, f"rollout.urls=[{url}]", f"run.dir={folder}", *more]


@pytest.fixture(scope="module")
def finished(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead") / "run"
    assert iwopd(*settings(server.url, folder)) == 0
    return folder


def steps(folder: Path) -> list[dict]:
    return [row for row in rows(folder / "metrics.jsonl") if "train/loss" in row]


def versions(checkpoint: Path) -> list[int]:
    """Of the rollouts that wait in it."""
    with numpy.load(checkpoint / FILE) as held:
        return held["version"].tolist()


# ---------------------------------------------------------------------------------------------- what is trained on


@pytest.mark.process
def test_each_step_but_the_first_trains_on_responses_of_the_student_of_one_before(finished: Path) -> None:
    found = steps(finished)
    assert [row["train/staleness"] for row in found] == [0, 1, 1, 1]
    assert found[0]["train/importance_ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert all(abs(row["train/importance_ratio_mean"] - 1) < 0.05 for row in found)
    assert found[0]["train/sampler_gap_mean"] < 1e-5 < 1e-4 < min(row["train/sampler_gap_mean"] for row in found[1:])
    assert {row["train/importance_capped"] for row in found} == {0}
    assert "sampler and trainer differ" not in (finished / "train.log").read_text(), "what the update moved is no fault"
    assert versions(finished / "checkpoints" / "step-000002") == [1] * 4
    assert not (finished / "checkpoints" / "step-000004" / FILE).exists(), "there is no step that would take them"


@pytest.mark.process
def test_it_trains_as_a_run_one_step_at_a_time_whose_engine_gets_each_students_weights_one_step_late(
    server: ModelServer, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, last = VllmServerEngine.sync_weights, list[tuple[list, int]]()

    def late(engine: VllmServerEngine, student: Any, version: int) -> None:
        last.append(([(name, tensor.clone()) for name, tensor in student.named_weights()], version))
        older, number = last[max(0, len(last) - 2)]
        given(engine, SimpleNamespace(named_weights=lambda: iter(older)), number)  # pyright: ignore

    monkeypatch.setattr(VllmServerEngine, "sync_weights", late)
    alone = ["rollout.ahead=0", "rollout.parity.prompts=0", "eval.every=0"]
    assert iwopd(*settings(server.url, tmp_path / "late", *alone)) == 0
    assert weights(tmp_path / "late" / "final") == weights(finished / "final")
    own, reference = steps(finished), steps(tmp_path / "late")
    for key in (key for key in reference[0] if key.startswith("train/")):
        assert [row[key] for row in own] == [row[key] for row in reference], key


# ---------------------------------------------------------------------------------------------- resume


@pytest.mark.process
def test_killed_it_resumes_with_the_rollouts_that_waited(server: ModelServer, finished: Path, tmp_path: Path) -> None:
    running = start(*settings(server.url, tmp_path / "run"))
    wait_for_line(running, "step 3")
    running.kill()
    running.communicate()
    assert_resumes_as(finished, server, tmp_path / "run")


@pytest.mark.process
def test_stopped_while_the_next_rollouts_are_written_it_waits_for_them_and_resumes(
    smoke_models: dict[str, Path], finished: Path, tmp_path: Path
) -> None:
    held, folder = threading.Event(), tmp_path / "run"

    def hold(count: int) -> None:  # rollouts of step 3, which are asked for in step 2
        if (folder / "metrics.jsonl").exists() and len(steps(folder)) == 1:
            held.wait(60)

    with ModelServer(smoke_models["student"], hold) as slow:
        running = start(*settings(slow.url, folder, "run.save_every=0"))
        wait_for_line(running, "step 1")
        time.sleep(1.5)  # step 2 is trained on, or about to be: what is saved must do in both cases
        running.send_signal(signal.SIGINT)
        wait_for_line(running, "the next step's rollouts are under way and waited for")
        held.set()
        out, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (130, "")
    assert "after step 2/4, saved" in out
    with ModelServer(smoke_models["student"]) as other:
        assert_resumes_as(finished, other, folder, "run.save_every=0")


def assert_resumes_as(finished: Path, server: ModelServer, folder: Path, *more: str) -> None:
    assert versions(folder / "checkpoints" / "step-000002") == [1] * 4
    assert iwopd(*settings(server.url, folder, "run.resume=true", *more)) == 0
    assert weights(folder / "final") == weights(finished / "final")
    assert learned(folder) == learned(finished)


def learned(folder: Path) -> list[dict]:
    """Metrics less those of the sync that a stop after the update spares."""
    found = without_times(rows(folder / "metrics.jsonl"))
    return [{key: value for key, value in row.items() if not key.startswith("sync/")} for row in found]


@pytest.mark.process
def test_a_server_that_dies_with_rollouts_under_way_costs_these_and_no_step(
    server: ModelServer, smoke_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def die(count: int) -> None:
        if (folder / "metrics.jsonl").exists() and len(steps(folder)) == 1:
            gate.shut()

    with ModelServer(smoke_models["student"], die) as mortal:
        gate = Gate(mortal.server.server_address[1])
        line = refused(capsys, *settings(gate.url, folder, "run.save_every=0"))
    assert "no server is left of 1" in line
    assert "step 2 is saved, resume with run.resume=true" in line
    assert [row["train/staleness"] for row in steps(folder)] == [0, 1]
    capsys.readouterr()
    assert iwopd(*settings(server.url, folder, "run.resume=true", "run.save_every=0")) == 0
    assert "step-000002: holds no rollouts of step 3, which are generated anew" in capsys.readouterr().out
    assert [row["train/staleness"] for row in steps(folder)] == [0, 1, 0, 1]


# ---------------------------------------------------------------------------------------------- order and memory


class Tracked(list[Rollout]):
    """A batch that can be watched."""


class Recorded(FakeEngine):
    """Notes what it is asked, and how many batches there are."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = list[str]()
        self.batches = weakref.WeakSet[Any]()
        self.most = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, **more: Any) -> list[Rollout]:
        self.asked.append(f"generate {more['stream']}")
        return self._kept(super().generate(prompts, sampling, **more))

    def send(self, prompts: Sequence[Prompt], sampling: Sampling, *, stream: int | str, **more: Any) -> UnderWay:
        self.asked.append(f"send {stream}")
        made, engine = FakeEngine.generate(self, prompts, sampling, stream=stream, **more), self

        class Later(UnderWay):
            def collect(self, progress: Progress = no_progress) -> list[Rollout]:
                engine.asked.append(f"collect {stream}")
                return engine._kept(made)

        return Later()

    def _kept(self, made: list[Rollout]) -> list[Rollout]:
        batch = Tracked(made)
        self.batches.add(_Handle(batch))
        return batch


class _Handle:
    def __init__(self, batch: Tracked):
        batch.handle = self  # pyright: ignore


@pytest.mark.parametrize("budget", [None, 55])
def test_one_batch_at_most_waits_however_slow_the_update_is(budget: int | None) -> None:
    engine = Recorded()
    rollout = HfRolloutConfig(ahead=1, n=2, max_tokens=8, horizon=2, horizon_end=4, horizon_power=1)
    schedule = Schedule(steps=4, tokens=budget)
    stream = SimpleNamespace(batch=lambda step: [Prompt(f"{step}-{place}", [1, 2], "") for place in range(3)])
    parts: Any = SimpleNamespace(
        engine=engine,
        stream=stream,
        teacher=FakeTeacher(),
        sampling=Sampling(n=2, max_tokens=8),
        objective=Objective(SCHEMES["uniform"]()),
    )
    config: Any = SimpleNamespace(rollout=rollout, seed=0)
    made, state = Rollouts(config, parts, schedule), State()
    while not schedule.ended(state):
        batch = made.of(state, stream.batch(state.step))
        assert {each.prompt_id for each in batch.rollouts} == {f"{state.step}-{place}" for place in range(3)}
        assert {each.policy_version for each in batch.rollouts} == {max(0, state.step - 1)}
        assert batch.horizon == horizon_tokens(rollout, schedule.progress(state), None), "known when it was asked for"
        tokens = sum(len(each.response_ids) for each in batch.rollouts)
        assert tokens == 6 * batch.horizon
        gc.collect()
        assert len(engine.batches) <= 2, "one in training, one that waits"
        del batch
        schedule.advance(state, tokens)
        made.settle()
        engine.sync_weights(None, state.step)
    ahead = [f"{what} {step}" for step in range(1, state.step) for what in ("send", "collect")]
    assert state.step >= 3
    assert engine.asked == ["generate 0", *ahead], "none is asked for that no step would take"


# ---------------------------------------------------------------------------------------------- refusals

REFUSED = {
    "rollout=hf": "samples from the very model that the update changes",
    "rollout=vllm": "shares this process and its device with the update",
    "rollout=vllm_server rollout.urls=[http://x:1] loss.importance_cap=null": "leaves out the importance correction",
    "rollout=vllm_server rollout.urls=[http://x:1] scoring.student_logprobs=sampler": "A_t would be of another policy",
    "rollout=vllm_server rollout.urls=[http://x:1] rollout.ahead=2": "must be at least 0 and at most 1",
}


@pytest.mark.cli
@pytest.mark.parametrize("chosen", REFUSED)
def test_where_it_cannot_help_it_is_refused_in_one_line(
    chosen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "train", *SMALL, "rollout.ahead=1", *chosen.split(), f"run.dir={tmp_path / 'run'}")
    assert REFUSED[chosen] in line
    assert "rollout.ahead=" in line
    assert not (tmp_path / "run").exists()
