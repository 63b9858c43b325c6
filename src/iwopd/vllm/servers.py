"""vLLM servers over HTTP: requests go to the least loaded, are tried again elsewhere, and a dead server is left out."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
import numpy

from iwopd.config import HttpConfig
from iwopd.errors import EngineError
from iwopd.vllm.http import HttpClient, checked, error_message, is_loopback, reason, refused, worth_another_try
from iwopd.vllm.server import Server

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
PROBE = 5.0  # seconds to wait for a server that may be dead
PROBES = 3  # of a server that drops connections
PATIENCE = 3  # failures in a row after which a server counts as dead
COMPLETIONS, POOLING = "v1/completions", "pooling"  # what requests are sent to
BAD_ANSWER = (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError, AttributeError)


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

    def __init__(self, key: str, urls: Sequence[str], settings: HttpConfig, api_key: str | None = None):
        self.key = key
        self.settings = settings
        self.servers = [Server(url.rstrip("/")) for url in urls]
        _warn_of_plain_http(key, self.servers)
        self._slots = asyncio.Semaphore(settings.connections * len(urls))
        self._http = HttpClient(api_key)
        try:
            for server in self.servers:
                self._http.run(self._handshake(server))
        except BaseException:
            self.close()
            raise

    async def _handshake(self, server: Server) -> None:
        try:
            answer = await self._repeat(server, lambda: self._ask("GET", server, "v1/models", PROBE))
            card = checked(answer).json()["data"][0]
            server.model, server.context = str(card["id"]), int(card.get("max_model_len") or 0)
            server.root = str(card.get("root") or "")
        except BAD_ANSWER as error:
            raise EngineError(
                f"{self.key}={server.url}: no vLLM server answers there ({reason(error)}); start one, "
                "or check the address (http://HOST:PORT)"
            ) from error

    async def _ask(
        self, method: str, server: Server, path: str, deadline: float, body: object = None
    ) -> httpx.Response:
        return await self._http.request(method, f"{server.url}/{path}", deadline, body)

    @property
    def alive(self) -> list[Server]:
        """Those that answer, as far as is known."""
        return [server for server in self.servers if server.alive]

    def submit(
        self, body: dict[str, Any], tokens: int, read: Callable[[Any], Answer], path: str = COMPLETIONS
    ) -> "Future[Answer]":
        """Ask for a completion, or for hidden states, in the background.

        Args:
            body: what `path` takes, without the model's name; the prompt may be an array, which takes less memory
                than a list while the request waits.
            tokens: how much work it is at most; load is spread by it.
            read: makes what is wanted of a completion's first choice, or of a whole `httpx.Response` of /pooling;
                BadAnswer has it asked for again.
        """
        return self._http.start(self._complete(path, body, tokens, read))

    def complete_on(
        self, server: Server, body: dict[str, Any], read: Callable[[Any], Answer], path: str = COMPLETIONS
    ) -> Answer:
        """As `submit`, but by this server and no other, and waited for.

        Raises:
            EngineError: it gives no usable answer.
        """

        async def ask() -> Answer:
            return read(await self._post(server, path, body))

        async def repeated() -> Answer:
            try:
                return await self._repeat(server, ask)
            except BAD_ANSWER as error:
                await self._failed(server, error)
                raise EngineError(f"{self.key}={server.url}: no usable answer ({reason(error)})") from error

        return self._http.run(repeated())

    async def _post(self, server: Server, path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401  see `submit`
        """What `submit` passes to `read`."""
        plain = {key: value.tolist() if isinstance(value, numpy.ndarray) else value for key, value in body.items()}
        named = plain | {"model": server.model}
        answer = checked(await self._ask("POST", server, path, self.settings.timeout_s, named))
        return answer.json()["choices"][0] if path == COMPLETIONS else answer

    async def _complete(self, path: str, body: dict[str, Any], tokens: int, read: Callable[[Any], Answer]) -> Answer:
        tried: list[Server] = []
        problem = "nothing was tried"
        for attempt in range(self.settings.retries + 1):
            await self._pause(attempt)
            async with self._slots:
                server = self._choose(tried)
                server.outstanding += tokens
                try:
                    found = read(await self._post(server, path, body))
                    server.failures = 0
                    return found
                except BAD_ANSWER as error:
                    if isinstance(error, httpx.HTTPStatusError) and refused(error.response):
                        raise EngineError(
                            f"{self.key}={server.url}: refuses a request ({error}); it cannot serve"
                        ) from error
                    problem = f"{server.url}: {reason(error)}"
                    tried.append(server)
                    await self._failed(server, error)
                finally:
                    server.outstanding -= tokens
        raise EngineError(
            f"{self.key}: no usable answer after {self.settings.retries + 1} tries; the last was {problem}; "
            "look at the servers' logs"
        )

    async def _pause(self, attempt: int) -> None:
        if attempt:
            await asyncio.sleep(self.settings.backoff_s * 2 ** (attempt - 1))

    def _choose(self, tried: Sequence[Server]) -> Server:
        """The server with the least to do, rather one that has not failed at this request."""
        self._refuse_if_none_is_left()
        return min(self.alive, key=lambda server: (tried.count(server), server.outstanding))

    def _refuse_if_none_is_left(self) -> None:
        if not self.alive:
            raise EngineError(f"{self.key}: no server is left of {len(self.servers)}; start them again")

    async def _repeat(self, server: Server, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The result of `ask`, tried again while the server is there and fails.

        Raises:
            httpx.HTTPError, ValueError, …: of the last try.
        """
        error: Exception = EngineError("nothing was tried")
        for attempt in range(self.settings.retries + 1):
            await self._pause(attempt)
            try:
                result = await ask()
                if isinstance(result, httpx.Response) and worth_another_try(result):
                    checked(result)
                server.failures = 0
                return result
            except BAD_ANSWER as problem:
                error = problem
            if isinstance(error, httpx.HTTPStatusError) and refused(error.response):
                break
            if isinstance(error, httpx.TransportError) and not await self._answers(server):
                break
        raise error

    async def _failed(self, server: Server, error: Exception) -> None:
        server.failures += 1
        gone = isinstance(error, httpx.TransportError) and not await self._answers(server)
        if gone or server.failures >= PATIENCE * self.settings.connections:
            was_alive, server.alive = server.alive, False
            if was_alive:
                left = len(self.alive)
                log.warning("%s: server %s is gone (%s); %d left", self.key, server.url, reason(error), left)

    async def _answers(self, server: Server) -> bool:
        for _ in range(PROBES):
            try:
                return (await self._ask("GET", server, "health", min(PROBE, self.settings.timeout_s))).is_success
            except (httpx.ConnectError, httpx.TimeoutException, httpx.InvalidURL):
                return False
            except httpx.HTTPError:  # one dropped connection is not a dead server
                await asyncio.sleep(self.settings.backoff_s)
        return False

    def revive(self) -> list[Server]:
        """Servers that were gone and answer again; they count as alive from now on.

        Raises:
            EngineError: none is left.
        """
        back = [server for server in self.servers if not server.alive and self._http.run(self._answers(server))]
        for server in back:
            log.warning("%s: server %s is back", self.key, server.url)
            self._http.run(self._handshake(server))  # it may serve another model now
            server.alive, server.failures = True, 0
        self._refuse_if_none_is_left()
        return back

    def post(self, server: Server, path: str, body: dict[str, Any] | None = None, *, repeat: bool = True) -> None:
        """A control call, tried again like a completion.

        Args:
            repeat: False for what must not happen twice.

        Raises:
            EngineError: it fails.
        """
        answer = self._control("POST", server, path, body, repeat)
        if answer.status_code == 404:
            raise EngineError(
                f"{self.key}={server.url}: has no /{path}; start it with VLLM_SERVER_DEV_MODE=1 in its environment"
            )
        if not answer.is_success:
            raise EngineError(f"{self.key}={server.url}: /{path} fails ({error_message(answer)}); see the server's log")

    def get(self, server: Server, path: str) -> dict[str, Any]:
        """What a control call answers.

        Raises:
            EngineError: it fails.
        """
        try:
            return checked(self._control("GET", server, path)).json()
        except (httpx.HTTPError, ValueError) as error:
            raise EngineError(f"{self.key}={server.url}: /{path} fails ({reason(error)})") from error

    def _control(
        self, method: str, server: Server, path: str, body: object = None, repeat: bool = True
    ) -> httpx.Response:
        async def ask() -> httpx.Response:
            return await self._ask(method, server, path, self.settings.timeout_s, body)

        async def repeated() -> httpx.Response:
            try:
                return await (self._repeat(server, ask) if repeat else ask())
            except httpx.HTTPStatusError as error:
                return error.response
            except httpx.HTTPError as error:
                await self._failed(server, error)
                raise EngineError(f"{self.key}={server.url}: /{path} fails ({reason(error)})") from error

        return self._http.run(repeated())

    def can_change_weights(self, server: Server) -> bool:
        """True where it was started with VLLM_SERVER_DEV_MODE=1."""
        return self._control("GET", server, "weight_info").status_code != 404

    def map_concurrent(self, function: Callable[[Server], None], servers: Sequence[Server]) -> None:
        """`function` for all of them at the same time."""
        if not servers:
            return
        with ThreadPoolExecutor(len(servers), thread_name_prefix="vllm-server") as pool:
            futures = [pool.submit(function, server) for server in servers]
            try:
                for done in futures:
                    done.result()
            except KeyboardInterrupt:
                self.close()  # what the threads wait for ends with it
                raise

    def close(self) -> None:
        """Cancel what is under way."""
        self._http.close()


def _warn_of_plain_http(key: str, servers: Sequence[Server]) -> None:
    exposed = [server.url for server in servers if server.url.startswith("http://") and not is_loopback(server.url)]
    if exposed:
        log.warning(
            "%s: %s: plain http beyond this machine: whoever is between can read and change rollouts, weights and the "
            "API key; use https or a tunnel where the network is not your own",
            key,
            ", ".join(exposed),
        )
