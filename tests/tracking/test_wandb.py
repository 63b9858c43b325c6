"""Weights & Biases, for real and offline: what its file holds, and that a resumed run continues in it."""

import json
import re
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support.running import SMALL, iwopd, rows

from iwopd.runs.tracking import Tracker
from iwopd.tracking.samples import shaded_sample
from iwopd.tracking.wandb import WandbMirror, WandbTracking

pytestmark = pytest.mark.process  # wandb starts its service

WANDB = ("tracking=wandb", "tracking.project=tests", "run.steps=2", "run.keep=0", "weighting=first30")


class Dropped(subprocess.Popen):
    """wandb forgets the process of a service that was killed, and never waits for it; Python warns of that later, in
    whichever test garbage is collected."""

    def __del__(self) -> None:
        self.poll()
        self.returncode = self.returncode or 0
        super().__del__()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(autouse=True)
def _services_that_wandb_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.sdk.lib.service import service_process

    monkeypatch.setattr(service_process, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Dropped}))


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path_factory.mktemp("home") / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, smoke_models: dict[str, Path]) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("WANDB_API_KEY", raising=False)
        patched.setenv("NETRC", str(tmp_path_factory.mktemp("home") / "netrc"))
        patched.setenv("WANDB_SILENT", "true")
        folder = tmp_path_factory.mktemp("runs") / "run"
        assert iwopd("train", *SMALL, *WANDB, f"run.dir={folder}") == 0
        yield folder


def whole(file: Path) -> bytes:
    """A run ends some milliseconds before wandb's service has written the last of it."""
    until, said = time.monotonic() + 60, file.parent / "logs" / "debug-internal.log"
    while "stream: all finished" not in said.read_text():
        assert time.monotonic() < until, said.read_text()
        time.sleep(0.01)
    return file.read_bytes()


def records(file: Path) -> Iterator[Any]:
    """wandb's file: LevelDB's log format after a header of 7 bytes, with a protobuf in each record."""
    from wandb.proto import wandb_internal_pb2

    content, place, parts = whole(file), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def the_file(folder: Path) -> Path:
    [file] = (folder / "wandb").glob("offline-run-*/*.wandb")
    return file


def history(file: Path) -> list[dict]:
    found = []
    for record in records(file):
        if record.HasField("history"):
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            found.append(items)
    return found


def test_without_a_login_it_is_offline_and_says_how_to_upload(finished: Path) -> None:
    said = (finished / "train.log").read_text()
    assert "wandb: offline, as nobody is logged in; upload it later with: wandb sync " in said
    folder = Path(said.partition("wandb sync ")[2].splitlines()[0])
    assert folder == the_file(finished).parent


def test_the_curves_are_those_of_metrics_jsonl(finished: Path) -> None:
    logged = [row for row in history(the_file(finished)) if "samples.path" not in row]
    truth = rows(finished / "metrics.jsonl")
    assert len(logged) == len(truth)
    for found, expected in zip(logged, truth, strict=True):
        wanted = {key: value for key, value in expected.items() if key != "time"}
        assert {key: found[key] for key in wanted} == pytest.approx(wanted)
    groups = {key.partition("/")[0] for row in truth for key in row} - {"step", "time"}
    assert {"train", "eval", "tokens", "data"} <= groups


def test_every_group_is_drawn_over_the_runs_own_steps(finished: Path) -> None:
    defined = {
        record.metric.glob_name: record.metric.step_metric
        for record in records(the_file(finished))
        if record.HasField("metric") and record.metric.glob_name
    }
    for group in ("train", "eval", "tokens", "time", "sync"):
        assert defined[f"{group}/*"] == "step"


def test_the_whole_config_is_there(finished: Path) -> None:
    [started] = [record.run for record in records(the_file(finished)) if record.HasField("run")][:1]
    config = {update.key: json.loads(update.value_json) for update in started.config.update}
    assert config["weighting"] == {"scheme": "window", "side": "first", "fraction": 0.3}
    assert config["rollout"]["max_tokens"] == 24
    assert config["student"]["path"] == "toy://smoke/student"
    assert started.project == "tests"


def test_the_table_shows_weights_token_by_token(finished: Path) -> None:
    tables = [row["samples.path"] for row in history(the_file(finished)) if "samples.path" in row]
    assert len(tables) == 2, "one for each evaluation"
    table = json.loads((the_file(finished).parent / "files" / tables[-1]).read_text())
    samples = [row for row in rows(finished / "samples.jsonl") if row["step"] == 2]
    assert len(table["data"]) == len(samples)
    for cells, sample in zip(table["data"], samples, strict=True):
        row = dict(zip(table["columns"], cells, strict=True))
        for name in ("prompt", "response", "answer", "correct", "finish_reason", "step"):
            assert row[name] == sample[name]
        for name in ("weights", "advantages", "teacher_logprobs"):
            assert json.loads(row[name]) == sample[name]


def test_the_page_shades_every_token_that_has_a_weight(finished: Path) -> None:
    pages = [row["samples_shaded.path"] for row in history(the_file(finished)) if "samples_shaded.path" in row]
    page = (the_file(finished).parent / "files" / pages[-1]).read_text()
    samples = [row for row in rows(finished / "samples.jsonl") if row["step"] == 2]
    assert page.count("<span") == sum(len(row["weights"]) for row in samples)
    assert page.count("<hr>") == len(samples) - 1
    figures = [
        row["samples_by_position.path"] for row in history(the_file(finished)) if "samples_by_position.path" in row
    ]
    assert len(figures) == 2
    assert (the_file(finished).parent / "files" / figures[-1]).read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_continues_in_the_same_wandb_run(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step-000002")
    before = set((folder / "wandb").glob("offline-run-*"))
    settings = ("run.save_every=1", f"run.dir={folder}", "run.resume=true")
    assert iwopd("train", *SMALL, *WANDB, *settings) == 0
    [added] = set((folder / "wandb").glob("offline-run-*")) - before
    [file] = added.glob("*.wandb")
    assert file.name == the_file(finished).name == f"run-{(folder / 'wandb_id').read_text()}.wandb"
    assert history(file) == [], "the steps that were taken again are there already"


def test_a_key_makes_it_online_and_a_net_that_fails_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is found without asking the network; where the server cannot be reached, the run continues offline."""
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    modes, init = [], wandb.init

    def unreachable(**given):
        modes.append(given["mode"])
        if given["mode"] == "online":
            raise wandb.errors.CommError("no route to host")
        return init(**given)

    monkeypatch.setattr("wandb.init", unreachable)
    assert iwopd("train", *SMALL, *WANDB, "run.steps=0", f"run.dir={tmp_path / 'run'}") == 0
    assert modes == ["online", "offline"]
    assert "offline, as no route to host; upload it later" in (tmp_path / "run" / "train.log").read_text()


def services_left() -> list[psutil.Process]:
    """Once the thread that speaks to wandb has ended, and what it killed is gone."""
    for thread in threading.enumerate():
        if thread.name == "wandb":
            thread.join(60)
    found = [child for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]
    return psutil.wait_procs([child for child in found if child.status() != psutil.STATUS_ZOMBIE], timeout=10)[1]


def test_given_up_while_it_starts_it_leaves_no_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trackers = [WandbTracking(wandb=True, project="tests", mode="offline", timeout_s=0.0)]
    with Tracker(tmp_path, trackers=trackers, config={}):
        pass
    assert "wandb does not answer" in caplog.text
    assert services_left() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_service_that_is_gone_or_hangs_does_not_end_the_run(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, noted, sent = WandbMirror.log, Tracker.log, threading.Event()

    def waiting(self: Tracker, step: int, metrics: dict[str, float]) -> None:
        assert step < 2 or sent.wait(100), "on a busy machine wandb starts more slowly than the run ends"
        noted(self, step, metrics)

    def after_it(self: WandbMirror, step: int, metrics: dict[str, float]) -> None:
        if step == 1:
            services = [child for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]
            assert services
            for service in services:
                service.send_signal(number)
            if number == signal.SIGKILL:
                psutil.wait_procs(services, timeout=10)
            sent.set()
        log(self, step, metrics)

    monkeypatch.setattr(WandbMirror, "log", after_it)
    monkeypatch.setattr(Tracker, "log", waiting)
    settings = ("run.steps=3", "tracking.timeout_s=2", f"run.dir={tmp_path / 'run'}")
    assert iwopd("train", *SMALL, *WANDB, *settings) == 0
    said = re.findall(r"warning: wandb (.*)", (tmp_path / "run" / "train.log").read_text())
    assert len(said) == 1
    assert said[0].startswith(("stopped working", "does not answer")), "wandb may wait for what was killed, too"
    assert services_left() == []
    assert rows(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 3
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_what_wandb_gets_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-of-mine")
    monkeypatch.setattr("sys.argv", ["iwopd train", "+a.hf_token=typed-in-1", "s3cret-of-mine"])
    config = {"a": {"hf_token": "typed-in-1"}, "note": "s3cret-of-mine", "kept": "${oc.env:MY_TOKEN}"}
    trackers = [WandbTracking(wandb=True, project="tests", mode="offline")]
    with Tracker(tmp_path, trackers=trackers, config=config) as tracker:
        tracker.log(0, {"train/loss": 1.0})
    found, until = [], time.monotonic() + 30
    while not found and time.monotonic() < until:  # on a busy machine wandb's service writes after `finish` returns
        found = [record.run for record in records(the_file(tmp_path)) if record.HasField("run")]
        time.sleep(0.1)
    for file in (tmp_path / "wandb").rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert b"typed-in-1" not in content, file
        assert b"s3cret-of-mine" not in content, file
    [started] = found[:1]
    assert json.loads(next(each.value_json for each in started.config.update if each.key == "kept")) == config["kept"]


@pytest.mark.unit
def test_tokens_are_escaped_and_shaded_within_the_window() -> None:
    row = {"tokens": ["<b>", "&", "\n", "x"], "start": 1, "weights": [0.5, 1.5], "advantages": [-0.25, 2.0]}
    page = shaded_sample({"prompt": "<i>1\n", "correct": True, **row})
    assert "&lt;i&gt;1⏎<br></b><br>right: &lt;b&gt;<span" in page
    assert 'rgba(240,140,0,0.33)" title="weight 0.500, advantage -0.250 nats">&amp;</span>' in page
    assert 'rgba(240,140,0,1.00)" title="weight 1.500, advantage 2.000 nats">⏎<br></span>x' in page
