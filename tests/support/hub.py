"""A hub on loopback: the few addresses that uploading a model asks for, and what was sent to each."""

import base64
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Hub:
    """Knows one token; files over 1 KiB are large to it, and go the LFS way."""

    def __init__(self, token: str, forbidden: bool = False):
        self.token = token
        self.forbidden = forbidden
        self.requests: list[Request] = []
        self.repositories: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.message = ""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, asked: Request) -> tuple[int, Any]:
        """Status and JSON."""
        path, given = asked.path.partition("?")[0], asked.body
        if path.startswith("/large/"):  # signed addresses need no token
            self.large[path.removeprefix("/large/")] = given
            return 200, {}
        if asked.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me"}
        if path == "/api/repos/create":
            return self._create(json.loads(given))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/branch/" in path:
            return 201, {}
        if "/preupload/" in path:
            return 200, {"files": [self._mode(file) for file in json.loads(given)["files"]]}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._slot(item) for item in json.loads(given)["objects"]]}
        if "/commit/" in path:
            return self._commit(given)
        return 404, {"error": f"no such address: {path}"}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        if self.forbidden:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.repositories[name] = wanted
        return 200, {"url": f"{self.url}/{name}"}

    @staticmethod
    def _mode(file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["size"] > 1024 else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def _slot(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "actions": {"upload": {"href": f"{self.url}/large/{item['oid']}"}}}

    def _commit(self, given: bytes) -> tuple[int, Any]:
        for line in given.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    self.message = value["summary"]
                case "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    self.files[value["path"]] = self.large[value["oid"]]
        return 200, {"commitUrl": f"{self.url}/me/x/commit/1", "commitOid": "1" * 40}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Request(self.command, self.path, headers, body)
                hub.requests.append(asked)
                status, content = hub.answer(asked)
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

            def log_message(self, *arguments: object) -> None: ...

        return Handler
