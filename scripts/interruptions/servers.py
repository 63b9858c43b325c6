"""Two vLLM servers for students, which are killed, stopped and restarted."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from interruptions.processes import send

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from support.servers import VllmServer

COUNT = 2
TIMEOUT_S = 4.0  # http.timeout_s of a session whose server is stopped beyond it


class Fleet:
    """The servers; a context manager that kills them."""

    def __init__(self, folder: Path):
        self.student, self.folder = _student(), folder
        folder.mkdir(parents=True, exist_ok=True)
        self.servers = [VllmServer(self.student, folder / f"server-{index}.log") for index in range(COUNT)]

    def __enter__(self) -> "Fleet":
        for server in self.servers:
            server.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self.servers:
            server.kill()

    @property
    def urls(self) -> str:
        return ",".join(server.url for server in self.servers)

    def harm(self, kind: str, amount: float) -> str:
        """Do what `kind` (of `plan.SERVERS`) says; what was done."""
        index = int(amount * COUNT)
        server = self.servers[index]
        if kind == "server: SIGKILL of its engine":
            engines = [each.pid for each in psutil.Process(server.process.pid).children(recursive=True)]
            send(signal.SIGKILL, engines)
            return f"{len(engines)} processes of server {index}"
        if kind in ("server: SIGKILL", "all servers: SIGKILL"):
            for each in [server] if kind == "server: SIGKILL" else self.servers:
                each.kill()
            return f"server {index}" if kind == "server: SIGKILL" else f"{COUNT} servers"
        seconds = 0.3 + 2.5 * amount if kind == "server: stopped for a moment" else TIMEOUT_S + 2 + 4 * amount
        self._stop(server, seconds)
        return f"server {index} for {seconds:.1f} s"

    def _stop(self, server: VllmServer, seconds: float) -> None:
        root = psutil.Process(server.process.pid)
        stopped = [root.pid, *(each.pid for each in root.children(recursive=True))]
        send(signal.SIGSTOP, stopped)

        def resume() -> None:
            time.sleep(seconds)
            send(signal.SIGCONT, stopped)

        self._resuming = threading.Thread(target=resume)
        self._resuming.start()

    def restore(self) -> None:
        """Restart those that are dead, at their address, and wait until all answer."""
        if hasattr(self, "_resuming"):
            self._resuming.join()
        for index, server in enumerate(self.servers):
            alive = server.process.poll() is None and len(psutil.Process(server.process.pid).children()) > 0
            if not alive:
                server.kill()
                log = self.folder / f"server-{index}.log"
                self.servers[index] = VllmServer(self.student, log, port=server.port)
        for server in self.servers:
            server.wait()


def _student() -> Path:
    """The model that `smoke` trains; made where it is not cached."""
    from iwopd.toy.models import ensure_models

    @contextmanager
    def no_progress(title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: None

    return ensure_models({"student": "toy://smoke/student"}, no_progress)["student"]
