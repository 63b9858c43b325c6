"""Trackers that fail, hang or fall behind, at any point: the run and metrics.jsonl do not notice."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.running import rows

from iwopd.errors import ConfigError
from iwopd.runs import mirrors
from iwopd.runs.tracking import Tracker
from iwopd.tracking.base import TrackedRun, Tracking


@dataclass(kw_only=True)
class Odd(Tracking):
    """A tracker that does `what` at `where`, and keeps what it was given."""

    name = package = "odd"

    where: str = ""
    what: Any = None
    given: list[tuple[int, str]] = field(default_factory=list)
    known: list[str | None] = field(default_factory=list)
    abandoned: bool = False

    def start(self, run: TrackedRun) -> "OddMirror":
        self.known.append(run.known)
        self.happen("start")
        return OddMirror(self)

    def happen(self, where: str) -> None:
        if where == self.where:
            self.what()

    def abandon(self) -> None:
        self.abandoned = True


class OddMirror:
    def __init__(self, tracker: Odd):
        self.tracker = tracker
        self.id = "its-id"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tracker.happen("log")
        self.tracker.given.append((step, "eval" if "eval/accuracy" in metrics else "train"))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.tracker.happen("samples")
        self.tracker.given.append((step, f"samples {[row['prompt'] for row in rows]}"))

    def close(self) -> None:
        self.tracker.happen("close")


def fail() -> None:
    raise OSError("no route to host\nand more")


def leave() -> None:
    raise SystemExit(3)


def hang() -> None:
    threading.Event().wait()


def log_some(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        if step:
            tracker.log(step, {"train/loss": 1.0})
        tracker.log(step, {"eval/accuracy": 0.5})
        tracker.samples(step, [{"prompt": f"p{step}"}])


def expected(first: int, last: int) -> list[tuple[int, str]]:
    parts = [(step, what) for step in range(first, last + 1) for what in ("train", "eval", f"samples ['p{step}']")]
    return [part for part in parts if part != (0, "train")]


@pytest.mark.parametrize("what", [fail, leave, hang])
@pytest.mark.parametrize("where", ["start", "log", "samples", "close"])
def test_the_run_does_not_notice(
    where: str, what: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "AFTER_KILL", 0.1)  # of one that hangs for ever
    odd, well = Odd(where=where, what=what, timeout_s=0.2), Odd()
    well.name = "well"  # pyright: ignore[reportAttributeAccessIssue]  beside it
    with Tracker(tmp_path, trackers=[odd, well]) as tracker:
        log_some(tracker, 0, 3)
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [0, 1, 1, 2, 2, 3, 3]
    assert well.given == expected(0, 3)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert said[0].startswith("odd ")
    assert "metrics.jsonl has everything" in said[0]
    assert odd.abandoned
    assert not well.abandoned


def test_what_one_that_was_given_up_starts_afterwards_is_ended_too(tmp_path: Path) -> None:
    """As wandb, whose `init` starts its service anew where that ends."""
    services, given_up = ["its service"], threading.Event()

    class Restarting(Odd):
        def abandon(self) -> None:
            services.clear()
            given_up.set()

    def start() -> None:
        assert given_up.wait(60)
        services.append("a new one")

    with Tracker(tmp_path, trackers=[Restarting(where="start", what=start, timeout_s=0.0)]):
        pass
    assert given_up.is_set()
    assert services == []


def test_a_setting_that_is_to_blame_is_said_as_such(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise ConfigError("tracking.mode=online: not logged in; log in")

    with Tracker(tmp_path, trackers=[Odd(where="start", what=refuse)]):
        pass
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("tracking.mode=online: not logged in; log in; training continues without it")


def test_one_that_takes_nothing_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "PENDING", 5)
    monkeypatch.setattr(mirrors, "AFTER_KILL", 0.1)
    with Tracker(tmp_path, trackers=[Odd(where="start", what=hang)]) as tracker:
        log_some(tracker, 0, 3)
        assert "does not take what it is given, 5 rows are waiting" in caplog.text, "while the run is at work"


def session(folder: Path, odd: Odd, sizes: dict[str, int] | None, first: int, last: int) -> dict[str, int]:
    with Tracker(folder, sizes, [odd]) as tracker:
        log_some(tracker, first, last)
        return tracker.state


def test_a_resumed_run_gives_nothing_twice(tmp_path: Path) -> None:
    odd = Odd()
    sizes = session(tmp_path, odd, None, 0, 2)
    session(tmp_path, odd, sizes, 3, 5)  # killed: its checkpoint is the one before
    session(tmp_path, odd, sizes, 3, 6)
    assert odd.given == expected(0, 6)
    assert odd.known == [None, "its-id", "its-id"]
    assert (tmp_path / "odd_id").read_text() == "its-id"


def test_what_a_tracker_missed_it_gets_when_the_run_is_resumed(tmp_path: Path) -> None:
    odd = Odd(where="log", what=lambda: fail() if len(odd.given) >= 2 else None)
    sizes = session(tmp_path, odd, None, 0, 2)
    assert odd.given == [(0, "eval"), (0, "samples ['p0']")]
    odd.where = ""
    session(tmp_path, odd, sizes, 3, 4)
    wanted = expected(0, 4)
    wanted.remove((1, "train"))  # that it failed at: it may have it, or not
    assert odd.given == wanted


def test_a_damaged_mark_is_none(tmp_path: Path) -> None:
    (tmp_path / "odd_logged").write_text("[1,")
    odd = Odd()
    session(tmp_path, odd, None, 0, 1)
    assert odd.given == expected(0, 1)
    assert json.loads((tmp_path / "odd_logged").read_text()) == [1, 2]
