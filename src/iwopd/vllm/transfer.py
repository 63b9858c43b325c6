"""Ways for the student's weights to reach vLLM workers in other processes.

`SharedFile` is run for real in the tests. `DeviceTransport` and `to_workers_of` follow vLLM's weight-transfer API (CUDA
IPC where trainer and worker share a GPU, NCCL where they do not); they need GPUs and have not been run yet.
"""

import contextlib
import os
import pickle
import shutil
import socket
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor

from iwopd.errors import EngineError
from iwopd.vllm.servers import Server, Servers

if TYPE_CHECKING:
    from vllm import LLM

    from iwopd.vllm.sender import Sender

MEMORY = Path("/dev/shm")  # files here are memory, not disk
PREFIX = f"iwopd-weights-{socket.gethostname()}-"
LOCK = ".lock"  # held by the trainer while it lives


class WeightSource(Protocol):
    """The student, as far as it matters here."""

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights under their names in HF checkpoints."""
        ...


class WeightTransport(Protocol):
    """How weights reach servers."""

    def publish(self, student: WeightSource) -> Callable[[Server], None]:
        """Make the weights ready; returns what has one server take them."""
        ...

    def close(self) -> None:
        """Take away what was made ready."""
        ...


class SharedFile:
    """Weights go into one file, by default in this machine's memory, that every server reads.

    Args:
        folder: one that trainer and servers share; None for servers on this machine.
    """

    def __init__(self, servers: Servers, folder: str | None, dtype: torch.dtype):
        self.servers = servers
        self.dtype = dtype
        self.base = Path(folder) if folder else (MEMORY if os.access(MEMORY, os.W_OK) else None)
        base = self.base or Path(tempfile.gettempdir())
        remove_abandoned(base)
        try:
            self._room = tempfile.TemporaryDirectory(prefix=PREFIX, dir=base)
            self._lock = FileLock(Path(self._room.name) / LOCK)
            self._lock.acquire()
        except OSError as error:
            raise EngineError(f"rollout.sync_dir={folder}: {error.strerror}; name a folder that exists") from error
        # This machine's memory is everybody's: there, only servers of the same user may read. In a folder that the user
        # names, who may is what the umask says, as for any file.
        self._private = folder is None
        self._grant(Path(self._room.name), 0o777)
        self.file = Path(self._room.name) / "student.safetensors"

    def _grant(self, path: Path, mode: int) -> None:
        path.chmod(mode & 0o700 if self._private else mode & ~_umask())

    def publish(self, student: WeightSource) -> Callable[[Server], None]:
        """See `WeightTransport`.

        Raises:
            EngineError: there is no room for the file.
        """
        draft = self.file.with_suffix(".draft")
        try:
            save_file({name: tensor.to(self.dtype).contiguous() for name, tensor in student.named_weights()}, draft)
        except Exception as error:  # OSError, or what safetensors makes of it
            raise EngineError(f"rollout.sync_dir={self.base}: no room for the weights ({error}); make some") from error
        self._grant(draft, 0o666)
        draft.replace(self.file)
        arguments = {"method": "take_weights_from", "args": [str(self.file)]}
        return lambda server: self.servers.post(server, "collective_rpc", arguments)

    def close(self) -> None:
        """Remove the file."""
        self._lock.release()
        self._room.cleanup()


def remove_abandoned(base: Path) -> None:
    """Remove weights that a trainer on this machine left in `base` when it was killed: those that nobody holds."""
    for room in base.glob(f"{PREFIX}*"):
        lock = FileLock(room / LOCK, timeout=0)
        if not (room / LOCK).exists():  # being made just now
            continue
        with contextlib.suppress(OSError, Timeout), lock:
            shutil.rmtree(room, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)  # there is no other way to read it
    os.umask(mask)
    return mask


class _InProcessClient:
    """vLLM's trainer side controls an `LLM` of this process through these four calls."""

    def __init__(self, llm: "LLM"):
        self.llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self.llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self.llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.llm.finish_weight_update(weight_version)


class _ServerClient:
    """The same four calls to a server, by the program's own client: no proxies, the API key, deadlines."""

    def __init__(self, servers: Servers, server: Server):
        self.servers = servers
        self.server = server

    def _post(self, path: str, body: dict[str, Any] | None = None) -> None:
        self.servers.post(self.server, path, body, repeat=False)  # a second try would meet half of the first

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("start_weight_update")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        parts = update_info if isinstance(update_info, list) else [update_info]
        safe = [_as_json(part) for part in parts]
        self._post("update_weights", {"update_info": safe if isinstance(update_info, list) else safe[0]})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("finish_weight_update", None if weight_version is None else {"weight_version": weight_version})


def _as_json(update_info: dict[str, Any]) -> dict[str, Any]:
    """CUDA IPC handles are no JSON: vLLM takes them pickled, where VLLM_ALLOW_INSECURE_SERIALIZATION=1 allows it."""
    if update_info.get("ipc_handles") is None:
        return update_info
    rest = {name: value for name, value in update_info.items() if name != "ipc_handles"}
    return rest | {"ipc_handles_pickled": b64encode(pickle.dumps(update_info["ipc_handles"])).decode()}


def to_workers_of(llm: "LLM", dtype: torch.dtype) -> Callable[[WeightSource], None]:
    """By CUDA IPC to the worker processes of an engine started here with tensor parallelism."""
    return _sender("ipc", _InProcessClient(llm), 0, dtype).send


def _sender(
    kind: Literal["nccl", "ipc"], client: "_InProcessClient | _ServerClient", world_size: int, dtype: torch.dtype
) -> "Sender":
    from iwopd.vllm.sender import Sender  # vLLM takes seconds, and other ways to servers do without

    return Sender(kind, client, world_size, dtype)


class DeviceTransport:
    """By NCCL or CUDA IPC to servers started with ``--weight-transfer-config '{"backend": "nccl"}'`` (or "ipc")."""

    def __init__(self, servers: Servers, kind: Literal["nccl", "ipc"], dtype: torch.dtype):
        self.servers = servers
        self.kind: Literal["nccl", "ipc"] = kind
        self.dtype = dtype
        self._senders: dict[str, Sender] = {}

    def publish(self, student: WeightSource) -> Callable[[Server], None]:
        """See `WeightTransport`: weights stay where they are until a server takes them."""

        def hand_over(server: Server) -> None:
            if server.url not in self._senders:
                size = self.servers.get(server, "get_world_size")["world_size"]
                self._senders[server.url] = _sender(self.kind, _ServerClient(self.servers, server), size, self.dtype)
            self._senders[server.url].send(student)
            self.servers.post(server, "collective_rpc", {"method": "retie"})

        return hand_over

    def close(self) -> None:
        """Close the connections."""
        for sender in self._senders.values():
            sender.close()
