"""An asynchronous HTTP client in a thread of its own: a deadline for each whole request, all cancelled on close."""

import asyncio
import ipaddress
import ssl
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar
from urllib.parse import urlsplit

import certifi
import httpx

Result = TypeVar("Result")


class HttpClient:
    """HTTP requests in the background, safe to use from several threads.

    Proxies of the environment are not used: servers are usually nearby, and a proxy would see every response. A private
    certificate authority is: that of the system, or of SSL_CERT_FILE and SSL_CERT_DIR.

    Args:
        api_key: sent as a bearer token; never printed.
    """

    def __init__(self, api_key: str | None = None):
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(
            headers=headers, timeout=None, limits=limits, trust_env=False, verify=_certificates()
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-http", daemon=True)
        self._thread.start()
        self._closing = False

    def start(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Run `work` in the background; cancelling the future drops the connection of a request under way."""
        if self._closing:
            work.close()
            raise CancelledError("the client is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` and wait for it; whatever interrupts the wait, such as Ctrl-C, cancels it."""
        future = self.start(work)
        try:
            return future.result()
        finally:
            future.cancel()

    async def request(self, method: str, url: str, deadline: float, body: object = None) -> httpx.Response:
        """The whole answer, within `deadline` seconds from now however slowly it trickles in.

        Raises:
            httpx.HTTPError: there is none; ReadTimeout after the deadline.
            httpx.InvalidURL: `url` is not an address.
        """
        try:
            async with asyncio.timeout(deadline):
                return await self._client.request(method, url, json=body)
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"no whole answer within {deadline:g} s") from error

    def close(self) -> None:
        """Cancel what is under way and end the thread."""
        if self._closing:
            return
        self._closing = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._client.aclose()
        await asyncio.sleep(0)  # connections close in the loop's next turn


def _certificates() -> ssl.SSLContext:
    """Authorities of the system and of SSL_CERT_FILE and SSL_CERT_DIR, and the public ones of certifi."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def is_loopback(url: str) -> bool:
    """True for an address of this machine that no other can reach."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def checked(answer: httpx.Response) -> httpx.Response:
    """`answer` itself.

    Raises:
        httpx.HTTPStatusError: it is an error, in one line.
    """
    if not answer.is_success:
        raise httpx.HTTPStatusError(error_message(answer), request=answer.request, response=answer)
    return answer


def worth_another_try(answer: httpx.Response) -> bool:
    """True for errors that may pass: of the server itself, or because it is busy."""
    return answer.status_code >= 500 or answer.status_code in (408, 429)


def refused(answer: httpx.Response) -> bool:
    """True where the request itself is at fault, so that another try is of no use."""
    return 400 <= answer.status_code < 500 and not worth_another_try(answer)


def is_missing(error: BaseException | None) -> bool:
    """True where a server has nothing at that path."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 404


def reason(error: Exception) -> str:
    """An exception in one line."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def error_message(answer: httpx.Response) -> str:
    """An error answer in one line."""
    try:
        content = answer.json()
        detail = content.get("error", content.get("detail", content))
        message = detail.get("message", detail) if isinstance(detail, dict) else detail
    except (ValueError, AttributeError):
        message = answer.text
    return f"status {answer.status_code}: {' '.join(str(message).split())[:300]}"
