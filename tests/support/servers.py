"""Real vLLM servers on loopback for tests, and a gate in front of one that can be shut."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two servers bound to one core would wait for each other
    # Of a server: that its engine computes in its own process, not in one more, which would import everything again.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class VllmServer:
    """`python -m vllm.entrypoints.openai.api_server`, as docs/vllm.md says to start one on a CPU.

    Args:
        plain: as anybody starts one, with nothing of ours.
        port: that of a server that is restarted; None for a free one.
    """

    def __init__(self, model: Path, log_file: Path, *arguments: str, plain: bool = False, port: int | None = None):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = log_file
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        options = {
            "--model": str(model),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--dtype": "float32",
            "--max-model-len": "256",
            "--max-num-seqs": "64",
            "--kv-cache-memory-bytes": str(2**28),
            "--worker-extension-cls": "iwopd.vllm.worker.StudentWeights",
            "--logprobs-mode": "processed_logprobs",
        }
        environment = dict(ENVIRONMENT)
        if plain:
            del environment["VLLM_SERVER_DEV_MODE"], options["--worker-extension-cls"], options["--logprobs-mode"]
        flags = ["--enforce-eager", "--no-enable-chunked-prefill", "--disable-uvicorn-access-log"]
        with log_file.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *(part for option in options.items() for part in option), *flags, *arguments],
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        limit = time.monotonic() + 240
        while time.monotonic() < limit:
            assert self.process.poll() is None, self.log_file.read_text()[-3000:]
            try:
                if httpx.get(f"{self.url}/health", timeout=1, trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.3)
        raise AssertionError(self.log_file.read_text()[-3000:])

    def kill(self) -> None:
        """At once, with all its processes."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Gate:
    """Passes connections on to a server until it is shut; then it is to its clients as if the server had died."""

    def __init__(self, port: int):
        self.target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        _end(source, sink)

    def shut(self) -> None:
        """Cut every connection, and take no more."""
        _end(self._listener, *self._open)


def _end(*sockets: socket.socket) -> None:
    for end in sockets:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
