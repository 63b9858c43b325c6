"""Datasets of a hub, by the real clients over HTTP: files of text give what is written in them, offline too."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.process

FILES = {
    "me/table": {"train.csv": b"prompt,answer\nq,05\nr,3.10\n", "test.csv": b"prompt,answer\ns,1e3\n"},
    "me/lines": {
        "train-0.jsonl": b'{"prompt": "q", "answer": 3.10}\n',
        "train-1.jsonl": b'{"prompt": "r", "answer": "05"}\n',
    },
}  # fmt: skip
COMMIT = "a" * 40
CODE = """
import json, sys
from iwopd.config import BenchmarkConfig
from iwopd.data import load_rows, text_of
for asked in sys.argv[1:]:
    path, split = asked.split("@")
    try:
        rows = load_rows(BenchmarkConfig(path=path, split=split), "data", answers=True)
        print(json.dumps([text_of(row["answer"]) for row in rows]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> tuple[int, Any, dict[str, str]]:
        path = unquote(self.path.partition("?")[0])
        name = "/".join(path.removeprefix("/api").split("/")[2:4])
        files = FILES.get(name, {})
        if not files:
            return 404, {"error": "not found"}, {"x-error-code": "RepoNotFound"}
        if path.startswith("/api/") and "/tree/" in path:
            if path.endswith("/data"):
                return 404, {"error": "not found"}, {"x-error-code": "EntryNotFound"}
            return (
                200,
                [{"type": "file", "path": each, "size": len(files[each]), "oid": "b" * 40} for each in files],
                {},
            )
        if path.startswith("/api/"):
            siblings = [{"rfilename": each} for each in files]
            return 200, {"id": name, "_id": "1", "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}, {}
        file = path.rpartition("/")[2]
        if file not in files:
            return 404, {"error": "not found"}, {"x-error-code": "EntryNotFound"}
        return 200, files[file], {"etag": f'"{name.replace("/", "-")}-{file}"', "x-repo-commit": COMMIT}

    def do_GET(self) -> None:
        status, content, headers = self.answer()
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def load(*asked: str, **environment: str) -> list[Any]:
    """NAME@SPLIT, each as a list of answers or what refuses it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *asked], capture_output=True, text=True, env=kept | environment, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_text_of_the_hub_is_what_is_written_there(hub: str, tmp_path: Path) -> None:
    table = ["me/table@train", "me/table@test", "me/table@train[:1]", "me/table@train+test", "me/lines@train"]
    expected = [["05", "3.10"], ["1e3"], ["05"], ["05", "3.10", "1e3"], ["3.10", "05"]]
    *found, other = load(*table, "me/table@none", HF_ENDPOINT=hub, HF_HOME=str(tmp_path))
    assert found == expected
    assert "no split none, only train, test" in other
    assert load(*table, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)) == expected


def test_a_home_that_cannot_be_written_is_named(hub: str) -> None:
    (said,) = load("me/table@train", HF_ENDPOINT=hub, HF_HOME="/proc/none")
    assert "data.path=me/table: /proc/none/hub, where downloads are kept, cannot be written" in said
    assert "set HF_HOME" in said
