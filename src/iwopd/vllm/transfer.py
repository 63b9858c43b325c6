"""Ways for the student's weights to reach vLLM workers in other processes.

`SharedFile` is run for real in the tests. `OverGpus` and `to_workers_of` follow vLLM's weight-transfer API (CUDA IPC
where trainer and worker share a GPU, NCCL where they do not); they need GPUs and have not been run yet.
"""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from iwopd.errors import EngineError
from iwopd.vllm.servers import Server, Servers

MEMORY = Path("/dev/shm")  # files here are memory, not disk


class Weighted(Protocol):
    """The student, as far as it matters here."""

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights under their names in HF checkpoints."""
        ...


class Route(Protocol):
    """How weights reach servers."""

    def publish(self, student: Weighted) -> Callable[[Server], None]:
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
        try:
            self._room = tempfile.TemporaryDirectory(prefix="iwopd-", dir=self.base)
        except OSError as error:
            raise EngineError(f"rollout.sync_dir={folder}: {error.strerror}; name a folder that exists") from error
        os.chmod(self._room.name, 0o755)  # servers may run as another user
        self.file = Path(self._room.name) / "student.safetensors"

    def publish(self, student: Weighted) -> Callable[[Server], None]:
        """See `Route`.

        Raises:
            EngineError: there is no room for the file.
        """
        draft = self.file.with_suffix(".draft")
        try:
            save_file({name: tensor.to(self.dtype).contiguous() for name, tensor in student.named_weights()}, draft)
        except Exception as error:  # OSError, or what safetensors makes of it
            raise EngineError(f"rollout.sync_dir={self.base}: no room for the weights ({error}); make some") from error
        draft.replace(self.file)
        arguments = {"method": "take_weights_from", "args": [str(self.file)]}
        return lambda server: self.servers.post(server, "collective_rpc", arguments)

    def close(self) -> None:
        """Remove the file."""
        self._room.cleanup()


class _InProcessClient:
    """vLLM's trainer side speaks to an `LLM` of this process through these four calls."""

    def __init__(self, llm: Any):
        self.llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self.llm.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self.llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.llm.finish_weight_update(weight_version)


def to_workers_of(llm: Any, dtype: torch.dtype) -> Callable[[Weighted], None]:
    """By CUDA IPC to the worker processes of an engine started here with tensor parallelism."""
    sender = _Sender("ipc", _InProcessClient(llm), world_size=0, dtype=dtype)
    return sender.send


class OverGpus:
    """By NCCL or CUDA IPC to servers started with ``--weight-transfer-config '{"backend": "nccl"}'`` (or "ipc")."""

    def __init__(self, servers: Servers, kind: Literal["nccl", "ipc"], dtype: torch.dtype):
        self.servers = servers
        self.kind: Literal["nccl", "ipc"] = kind
        self.dtype = dtype
        self._senders: dict[str, _Sender] = {}

    def publish(self, student: Weighted) -> Callable[[Server], None]:
        """See `Route`: weights stay where they are until a server takes them."""

        def hand_over(server: Server) -> None:
            from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient

            if server.url not in self._senders:
                size = self.servers.get(server, "get_world_size")["world_size"]
                self._senders[server.url] = _Sender(self.kind, HTTPVLLMWeightSyncClient(server.url), size, self.dtype)
            self._senders[server.url].send(student)
            self.servers.post(server, "collective_rpc", {"method": "retie"})

        return hand_over

    def close(self) -> None:
        """Close the connections."""
        for sender in self._senders.values():
            sender.close()


class _Sender:
    """One connection of vLLM's trainer side, opened with the first weights."""

    def __init__(self, kind: Literal["nccl", "ipc"], client: Any, world_size: int, dtype: torch.dtype):
        self.kind = kind
        self.client = client
        self.world_size = world_size
        self.dtype = dtype
        self._engine: Any = None
        self._student: Weighted | None = None

    def send(self, student: Weighted) -> None:
        self._student = student
        if self._engine is None:
            self._engine = self._open()
        self._engine.send_weights()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()

    def _open(self) -> Any:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        info: Any
        if self.kind == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            info = IPCTrainerInitInfo(rank=0)
        else:
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            # vLLM's workers join after this process, which is rank 0.
            info = NCCLTrainerInitInfo(
                rank=0, master_address=_own_address(), master_port=_free_port(), world_size=self.world_size + 1
            )
        return WeightTransferTrainerFactory.trainer_init(info, client=self.client, source=self._source())

    def _source(self) -> Any:
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

        sender = self

        class Source(WeightSource):
            """The student's weights under their names in HF checkpoints."""

            def metadata(self) -> list[Any]:
                return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]

            def __iter__(self) -> Iterator[tuple[str, Tensor]]:
                assert sender._student is not None
                for name, tensor in sender._student.named_weights():
                    yield name, tensor.to(sender.dtype)

        return Source()


def _own_address() -> str:
    return os.environ.get("MASTER_ADDR") or socket.gethostbyname(socket.gethostname())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
