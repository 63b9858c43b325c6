"""What the hub may answer, by a small server that answers so: one line each, and never the token."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from support.running import SMALL, refused

from iwopd.data.hub import check_on_hub
from iwopd.errors import ModelError

TOKEN = "hf_" + "secret" * 5
# As the hub answers GET /api/models/NAME/auth-check: status, and X-Error-Code or X-Error-Message.
ANSWERS = {
    "open/model": (200, None),
    "gated/model": (403, "GatedRepo"),
    "absent/model": (401, None),
    "gone/model": (404, "RepoNotFound"),
    "busy/model": (503, None),
    "forbidden/model": (403, None),
    "expired/model": (401, "Invalid credentials in Authorization header"),
}


class Hub(BaseHTTPRequestHandler):
    tokens: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        _, _, kind, *name, _ = self.path.split("/")
        if "revision" in self.path:
            name, status, code = name[:-1], 404, "RevisionNotFound"
        else:
            status, code = ANSWERS["/".join(name)]
        assert kind in ("models", "datasets")
        Hub.tokens.append(self.headers["Authorization"])
        self.send_response(status)
        if code:
            self.send_header("X-Error-Message" if " " in code else "X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    Hub.tokens.clear()
    yield address
    server.shutdown()
    server.server_close()


def test_what_may_be_read_passes_and_the_token_is_sent() -> None:
    check_on_hub("student.path", "open/model")
    assert Hub.tokens == [f"Bearer {TOKEN}"]


@pytest.mark.cli
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gated/model", "is gated: accept its terms on http://"),
        ("absent/model", "none on the hub that may be read; check the name, or if it is private, log in"),
        ("gone/model", "none on the hub that may be read"),
        ("busy/model", "the hub answers with status 503; give a local path"),
        ("expired/model", "the hub refuses the token it is given (status 401); log in with `hf auth login`"),
        ("forbidden/model", "the hub refuses the token it is given (status 403); log in with `hf auth login`"),
    ],
)
@pytest.mark.parametrize("key", ["student.path", "teacher.path", "data.path", "eval.benchmarks.smoke.path"])
def test_what_may_not_be_read_is_one_line_without_the_token(
    key: str, name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "train", *SMALL, f"run.dir={tmp_path / 'run'}", f"{key}={name}")
    assert line.startswith(f"iwopd: {key}={name}: ")
    assert says in line
    assert "secret" not in line
    assert not (tmp_path / "run").exists()


def test_gated_says_where_to_ask_and_how_to_log_in(hub: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_on_hub("teacher.path", "gated/model")
    assert f"accept its terms on {hub}/gated/model, then log in with `hf auth login` or set HF_TOKEN" in str(
        caught.value
    )


def test_a_revision_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="has no revision v9; name a branch, tag or commit"):
        check_on_hub("student.path", "open/model", revision="v9")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        check_on_hub("student.path", "open/model")
