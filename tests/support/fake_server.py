"""A server in vLLM's place that misbehaves as it is told."""

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from iwopd.config import HttpConfig
from iwopd.rollout.base import Sampling
from iwopd.rollout.vllm_server import VllmServerEngine
from iwopd.scoring.vllm_server import FIXED_PROMPT
from iwopd.types import Prompt, Rollout
from iwopd.vllm.servers import Server, Servers


class NoRoute:
    """Weights for servers that have none."""

    def publish(self, student: object) -> Callable[[Server], None]:
        return lambda server: None

    def close(self) -> None:
        pass


QUICK = HttpConfig(connections=4, timeout_s=30, retries=3, backoff_s=0.01)


class FakeServer:
    """Answers as vLLM does; `misbehave` may answer a completion itself (status, JSON), or return None.

    Attributes:
        root: what it says it loaded its model from.
        shift: nats added to the log-probs of the fixed prompt that teachers are asked to score.
        dropped: paths whose next request is dropped without an answer.
        headers: of every request, by path.
        states: of token ids, [tokens, width]; None for a server of completions, which has no /pooling.
        misbehave_pooling: as `misbehave`, for /pooling; its answer is (status, headers, bytes).
    """

    def __init__(self, misbehave: Callable[[int], tuple[int, Any] | None] = lambda count: None, context: int = 4096):
        self.completions = 0
        self.bodies: list[dict[str, Any]] = []
        self.version = "default"
        self.posted: list[str] = []
        self.root = ""
        self.shift = 0.0
        self.dropped: list[str] = []
        self.gone = False
        self.headers: dict[str, dict[str, str]] = {}
        self.states: Callable[[list[int]], Tensor] | None = None
        self.misbehave_pooling: Callable[[int], tuple[int, dict[str, str], bytes] | None] = lambda count: None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True  # a header and its body are two packets: no waiting between them
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.drops():
                    return
                answers = {
                    "/v1/models": {"data": [{"id": "m", "root": fake.root, "max_model_len": context}]},
                    "/health": {},
                    "/weight_info": {"weight_version": fake.version},
                }
                self.answer(200, answers[self.path])

            def drops(self) -> bool:
                fake.headers[self.path] = dict(self.headers)
                if self.path in fake.dropped:
                    fake.dropped.remove(self.path)
                elif not fake.gone:
                    return False
                self.close_connection = True
                return True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "null")
                if self.drops():
                    return None
                if self.path == "/pooling":
                    if fake.states is None:
                        return self.answer(404, {"detail": "Not Found"})
                    if body["input"] == FIXED_PROMPT:
                        return self.send(*fake.pooling(body))
                    fake.completions += 1
                    fake.bodies.append(body)
                    return self.send(*(fake.misbehave_pooling(fake.completions) or fake.pooling(body)))
                if self.path == "/v1/completions" and fake.states is not None:
                    return self.answer(404, {"detail": "Not Found"})
                if self.path != "/v1/completions":
                    fake.posted.append(self.path)
                    fake.version = (body or {}).get("new_version", fake.version)
                    fake.control(self.path, body or {})
                    return self.answer(200, {})
                if body["prompt"] == FIXED_PROMPT:
                    return self.answer(200, fake.completion(body, fake.shift))
                fake.completions += 1
                fake.bodies.append(body)
                return self.answer(*(misbehave(fake.completions) or (200, fake.completion(body))))

            def answer(self, status: int, content: Any) -> None:
                self.send(status, {}, json.dumps(content).encode())

            def send(self, status: int, headers: dict[str, str], data: bytes) -> None:
                with contextlib.suppress(ConnectionError):  # a client that did not wait
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *connection: None  # clients may leave as they like
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def pooling(self, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        """As vLLM answers encoding_format=bytes."""
        assert self.states is not None
        made = self.states(body["input"])
        made = normalize(made, dim=-1) if body.get("use_activation") is not False else made
        made = made.to(getattr(torch, body["embed_dtype"]))
        about = {"index": 0, "embed_dtype": body["embed_dtype"], "endianness": "little", "shape": list(made.shape)}
        data = made.contiguous().view(torch.uint8).numpy().tobytes()
        return 200, {"metadata": json.dumps({"data": [about | {"start": 0, "end": len(data)}]})}, data

    def control(self, path: str, body: dict[str, Any]) -> None:
        """A control call came."""

    @staticmethod
    def completion(body: dict[str, Any], shift: float = 0.0) -> dict[str, Any]:
        asked = body["prompt"]
        prompt_logprobs = [None, *({str(token): {"logprob": shift - float(token)}} for token in asked[1:])]
        ids = [7] * body["max_tokens"]
        choice = {"token_ids": ids, "logprobs": {"token_logprobs": [-1.0] * len(ids)}, "finish_reason": "length"}
        return {"choices": [choice | {"prompt_logprobs": prompt_logprobs}]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """It takes no more connections, and answers on none that there are."""
        self.gone = True
        self.server.shutdown()
        self.server.server_close()


def make_engine(*urls: str, settings: HttpConfig = QUICK) -> VllmServerEngine:
    return VllmServerEngine(Servers("rollout.urls", urls, settings), [0], NoRoute())


def ask(engine: VllmServerEngine, n: int = 4) -> list[Rollout]:
    return engine.generate([Prompt("p", [1, 2, 3], "")], Sampling(n=n, max_tokens=4), seed=1, stream=0)
