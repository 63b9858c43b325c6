"""vLLM servers over HTTP: requests go to the least loaded, are tried again elsewhere, and a dead server is left out."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from iwopd.errors import EngineError

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
PROBE = 5.0  # seconds to wait for a server that may be dead
PATIENCE = 3  # failures in a row after which a server counts as dead


@dataclass(frozen=True)
class HttpSettings:
    """See `iwopd.config.HttpConfig`."""

    connections: int = 64
    timeout: float = 600.0
    retries: int = 4
    backoff: float = 0.5


@dataclass(eq=False)
class Server:
    """One server and what is under way there.

    Attributes:
        model: the name it serves its model under.
        root: the folder or hub name that it loaded the model from; "" where it does not say.
        context: longest prompt and response together, tokens.
        outstanding: tokens asked for and not yet answered.
        failures: in a row; 0 after an answer.
    """

    url: str
    model: str = ""
    root: str = ""
    context: int = 0
    outstanding: int = 0
    failures: int = 0
    alive: bool = True


class BadAnswer(ValueError):
    """A server's answer that cannot be used; it is asked for again."""


class Servers:
    """All servers of one setting; safe to use from several threads.

    Args:
        key: the setting with their addresses, for messages.
        api_key: sent as a bearer token where the servers want one; never printed.

    Raises:
        EngineError: a server cannot be reached, or serves no model.
    """

    def __init__(self, key: str, urls: Sequence[str], settings: HttpSettings, api_key: str | None = None):
        self.key = key
        self.settings = settings
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.Client(headers=headers, timeout=settings.timeout, limits=limits, trust_env=False)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.servers = [Server(url.rstrip("/")) for url in urls]
        self._pool = ThreadPoolExecutor(max_workers=settings.connections * len(urls), thread_name_prefix="vllm-server")
        try:
            for server in self.servers:
                self._meet(server)
        except BaseException:
            self.close()
            raise

    def _meet(self, server: Server) -> None:
        try:
            answer = self._client.get(f"{server.url}/v1/models", timeout=PROBE)
            answer.raise_for_status()
            card = answer.json()["data"][0]
            server.model, server.context = str(card["id"]), int(card.get("max_model_len") or 0)
            server.root = str(card.get("root") or "")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
            raise EngineError(
                f"{self.key}={server.url}: no vLLM server answers there ({_reason(error)}); start one, "
                "or check the address (http://HOST:PORT)"
            ) from error

    @property
    def alive(self) -> list[Server]:
        """Those that answer, as far as is known."""
        return [server for server in self.servers if server.alive]

    def submit(self, body: dict[str, Any], tokens: int, read: Callable[[dict[str, Any]], Answer]) -> "Future[Answer]":
        """Ask for a completion in the background.

        Args:
            body: of /v1/completions, without the model's name.
            tokens: how much work it is at most; load is spread by it.
            read: makes the answer's first choice into what is wanted; BadAnswer has it asked for again.
        """
        return self._pool.submit(self._complete, body, tokens, read)

    def _complete(self, body: dict[str, Any], tokens: int, read: Callable[[dict[str, Any]], Answer]) -> Answer:
        tried: list[Server] = []
        problem = "nothing was tried"
        for attempt in range(self.settings.retries + 1):
            if attempt and self._closing.wait(self.settings.backoff * 2 ** (attempt - 1)):
                break
            server = self._choose(tokens, tried)
            try:
                answer = self._client.post(f"{server.url}/v1/completions", json=body | {"model": server.model})
                if 400 <= answer.status_code < 500 and answer.status_code not in (408, 429):
                    raise EngineError(f"{self.key}={server.url}: refuses a request ({_told(answer)}); it cannot serve")
                answer.raise_for_status()
                found = read(answer.json()["choices"][0])
                server.failures = 0
                return found
            except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
                problem = f"{server.url}: {_reason(error)}"
                tried.append(server)
                self._failed(server, error)
            finally:
                with self._lock:
                    server.outstanding -= tokens
        raise EngineError(
            f"{self.key}: no usable answer after {self.settings.retries + 1} tries; the last was {problem}; "
            "look at the servers' logs"
        )

    def _choose(self, tokens: int, tried: Sequence[Server]) -> Server:
        """The server with the least to do, rather one that has not failed at this request."""
        with self._lock:
            if not self.alive:
                raise EngineError(f"{self.key}: no server is left of {len(self.servers)}; start them again")
            server = min(self.alive, key=lambda server: (tried.count(server), server.outstanding))
            server.outstanding += tokens
            return server

    def _failed(self, server: Server, error: Exception) -> None:
        server.failures += 1
        gone = isinstance(error, httpx.TransportError) and not self._answers(server)
        if (gone or server.failures >= PATIENCE * self.settings.connections) and not self._closing.is_set():
            with self._lock:
                was_alive, server.alive = server.alive, False
            if was_alive:
                left = len(self.alive)
                log.warning("%s: server %s is gone (%s); %d left", self.key, server.url, _reason(error), left)

    def _answers(self, server: Server) -> bool:
        try:
            return self._client.get(f"{server.url}/health", timeout=PROBE).is_success
        except httpx.HTTPError:
            return False

    def revive(self) -> list[Server]:
        """Servers that were gone and answer again; they count as alive from now on.

        Raises:
            EngineError: none is left.
        """
        back = [server for server in self.servers if not server.alive and self._answers(server)]
        for server in back:
            log.warning("%s: server %s is back", self.key, server.url)
            server.alive, server.failures = True, 0
        if not self.alive:
            raise EngineError(f"{self.key}: no server is left of {len(self.servers)}; start them again")
        return back

    def post(self, server: Server, path: str, body: dict[str, Any] | None = None) -> None:
        """A control call.

        Raises:
            EngineError: it fails.
        """
        try:
            answer = self._client.post(f"{server.url}/{path}", json=body)
        except httpx.HTTPError as error:
            self._failed(server, error)
            raise EngineError(f"{self.key}={server.url}: /{path} fails ({_reason(error)})") from error
        if answer.status_code == 404:
            raise EngineError(
                f"{self.key}={server.url}: has no /{path}; start it with VLLM_SERVER_DEV_MODE=1 in its environment"
            )
        if not answer.is_success:
            raise EngineError(f"{self.key}={server.url}: /{path} fails ({_told(answer)}); see the server's log")

    def get(self, server: Server, path: str) -> Any:
        """What a control call answers.

        Raises:
            EngineError: it fails.
        """
        try:
            answer = self._client.get(f"{server.url}/{path}")
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            self._failed(server, error)
            raise EngineError(f"{self.key}={server.url}: /{path} fails ({_reason(error)})") from error

    def can_change_weights(self, server: Server) -> bool:
        """True where it was started with VLLM_SERVER_DEV_MODE=1."""
        try:
            return self._client.get(f"{server.url}/weight_info").status_code != 404
        except httpx.HTTPError as error:
            raise EngineError(f"{self.key}={server.url}: /weight_info fails ({_reason(error)})") from error

    def at_once(self, function: Callable[[Server], None], servers: Sequence[Server]) -> None:
        """`function` for all of them at the same time."""
        for done in [self._pool.submit(function, server) for server in servers]:
            done.result()

    def close(self) -> None:
        """Drop what is under way."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()


def _reason(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _told(answer: httpx.Response) -> str:
    """An error answer in one line."""
    try:
        content = answer.json()
        detail = content.get("error", content)
        message = detail.get("message", detail) if isinstance(detail, dict) else detail
    except (ValueError, AttributeError):
        message = answer.text
    return f"status {answer.status_code}: {' '.join(str(message).split())[:300]}"
