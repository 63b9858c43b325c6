"""Secrets stay where they are, and text of others commands nothing: what the program keeps, sends and shows."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.table import Table
from support.composing import composed
from support.running import SMALL, iwopd, refused

from iwopd.config.stored import stored
from iwopd.redact import install, printable, redact
from iwopd.runs.console import Display, PlainConsole

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://me:pa@ss@host:8000/v1 is gone", "http://…@host:8000/v1 is gone"),
        ("[postgres://u:p@db/x]", "[postgres://…@db/x]"),
        ("GET http://h/v1?api_key=abc&n=1", "GET http://h/v1?api_key=…&n=1"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer …"),
        ("{'hf_token': 'tok'}, password=x", "{'hf_token': '…'}, password=…"),
        ("hf_abcdefghijklmnopqrst sk-abcdefghijklmnopqrst", "… …"),
        ("the key is swordfish-7", "the key is …"),  # the value of an environment variable
        ("hf://datasets/a/b@main/c.json, max_tokens=5, eos_token: </s>", None),
        ("student.path=/data/models/x: no such key; 12 tokens, a@b", None),
    ],
)
def test_what_is_redacted(text: str, wanted: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVER_PASSWORD", "swordfish-7")
    monkeypatch.setenv("TOKEN_LIMIT", "123456")
    assert redact(text) == (text if wanted is None else wanted)


def test_what_is_printable() -> None:
    assert printable("a\x1b]0;x\x07b\r\x9b2J\u202e\tc\n") == "a\\x1b]0;x\\x07b\\r\\x9b2J\\u202e\tc\n"
    assert printable("naïve 数学 ✓ é") == "naïve 数学 ✓ é"


def test_log_records_of_every_library_are_clean(caplog: pytest.LogCaptureFixture) -> None:
    install()
    logging.getLogger("vllm.engine").warning("args %s", {"hf_token": "tok-1234", "note": "\x1b[2J"})
    [record] = [each for each in caplog.records if each.name == "vllm.engine"]
    assert record.getMessage() == "args {'hf_token': '…', 'note': '\\x1b[2J'}"


def test_a_console_shows_text_as_text() -> None:
    evil = "[/x] [red]a \x1b]0;title\x07 http://u:pw@h"
    for kind in (PlainConsole, Console):
        out = io.StringIO()
        display = Display(kind(file=out, force_terminal=True, width=200, _environ={"TERM": "xterm"}))
        table = Table("[/x]")
        table.add_row("[/b]")
        with display, display.stage(evil) as advance:
            advance(1, 2)
            display.line(evil)
            display.table(table)
        said = out.getvalue()
        assert "\x1b]0" not in said
        assert "pw" not in said
        assert said.count("[/x] [red]a \\x1b]0;title\\x07 http://…@h") >= 2
        assert "[/b]" in said


# ---------------------------------------------------------------------------------------------- what is kept


def test_what_came_from_the_environment_is_kept_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM", "team-7")
    monkeypatch.setenv("RATE", "0.25")
    monkeypatch.setenv("VLLM_API_KEY", "kkk-lll-mmm")
    settings = ("optim.lr=${oc.env:RATE}", "tracking=wandb", "tracking.entity=${oc.env:TEAM}", "rollout=vllm")
    more = ("tracking.group=${tracking.entity}-b", "+rollout.engine.args={hf_token: typed, x: a-kkk-lll-mmm}")
    config = composed(*settings, *more, "run.name='x${oc.decode:${oc.env:RATE}}'")
    assert (config.optim.lr, config.run.name) == (0.25, "x0.25")
    kept = stored(config, "train")
    assert kept["optim"]["lr"] == "${oc.env:RATE}"
    assert kept["tracking"]["entity"] == "${oc.env:TEAM}"
    assert kept["tracking"]["group"] == "${tracking.entity}-b"
    assert kept["run"]["name"] == "x${oc.decode:${oc.env:RATE}}"
    assert kept["rollout"]["engine"]["args"] == {"hf_token": "…", "x": "a-${oc.env:VLLM_API_KEY}"}
    assert not any(value in str(kept) for value in ("team-7", "0.25", "kkk-lll", "typed"))
    assert kept["environment"].keys() == {"optim.lr", "tracking.entity", "tracking.group", "run.name"}
    monkeypatch.setenv("RATE", "0.5")
    assert stored(composed(*settings, *more), "train")["environment"]["optim.lr"] != kept["environment"]["optim.lr"]


def test_a_run_keeps_no_secret_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    secret = "s3cret-of-the-team"
    monkeypatch.setenv("MY_TOKEN", secret)
    monkeypatch.setenv("RATE", "0.0001")
    settings = (*SMALL, "run.steps=1", "eval.every=0", "optim.lr=${oc.env:RATE}", "data.suffix=' ${oc.env:MY_TOKEN}'")
    settings = (*settings, f"eval.benchmarks.smoke.suffix=' {secret}'")  # as a shell would put it there
    folder = tmp_path / "run"
    assert iwopd("train", *settings, f"run.dir={folder}") == 0
    assert secret not in capsys.readouterr().out
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert kept["data"]["suffix"] == " ${oc.env:MY_TOKEN}"
    assert kept["optim"]["lr"] == "${oc.env:RATE}"
    assert kept["eval"]["benchmarks"]["smoke"]["suffix"] == " ${oc.env:MY_TOKEN}"
    for name in ("config.yaml", "about.json", "train.log", "metrics.jsonl"):
        assert secret not in (folder / name).read_text(), name
    assert iwopd("train", *settings, f"run.dir={folder}", "run.resume=true") == 0
    monkeypatch.setenv("RATE", "0.5")
    said = refused(capsys, "train", *settings, f"run.dir={folder}", "run.resume=true")
    assert "differing: environment.optim.lr" in said


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("rollout.urls=[http://a:8000,http://u:hunter2@h:1]", "rollout.urls"),
        ("rollout.urls=[http://u:hun/ter2@h:1]", "rollout.urls"),
        ("scoring.urls=[https://hunter2@h]", "scoring.urls"),
        ("+teachers.b={path: x, urls: [http://u:hunter2@h]}", "teachers.b.urls"),
        ("data.path=https://u:hunter2@host/a.jsonl", "data.path"),
        ("+rollout.engine.args.tokenizer=s3://u:hunter2@host/a", "rollout.engine.args.tokenizer"),
    ],
)
def test_an_address_with_a_password_is_refused_and_not_shown(setting: str, key: str, capsys) -> None:
    engine = "vllm" if "engine" in setting else "vllm_server"
    servers = [f"rollout={engine}", "scoring=vllm_server", "scoring.urls=[http://b:1]"]
    servers += [] if engine == "vllm" else ["rollout.urls=[http://a:1]"]
    said = refused(capsys, "train", *servers, setting)
    assert said.startswith(f"iwopd: {key}: an address holds a user name or password")
    assert "hunter2" not in said
    assert "ter2" not in said


def test_a_mistake_beside_a_secret_does_not_show_it(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter-number-2")
    for value in ("http://u:hunter2@h", "hunter-number-2", "[http://u:hunter2@h"):
        said = refused(capsys, "train", f"optim.lr={value}")
        assert "hunter" not in said


def test_a_traceback_is_clean() -> None:
    code = "import iwopd.redact as r; r.install(); raise ValueError('http://u:hunter2@h \\x1b[2J')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ValueError: http://…@h \\x1b[2J" in done.stderr
    assert "\x1b" not in done.stderr
