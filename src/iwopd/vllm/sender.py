"""vLLM's trainer side: one connection by which the student's weights reach vLLM's workers over NCCL or CUDA IPC.

Imported with the first weights that go this way, for vLLM is imported with it.
"""

import os
import socket
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta
from vllm.distributed.weight_transfer.base import WeightSource as VllmWeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from iwopd.vllm.transfer import WeightSource


class Client(Protocol):
    """What vLLM's trainer side calls at the workers' side."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class Sender:
    """One connection, opened with the first weights.

    Args:
        client: of the workers.
        world_size: how many they are; for NCCL.
        dtype: that weights are sent in.
    """

    def __init__(self, kind: Literal["nccl", "ipc"], client: Client, world_size: int, dtype: torch.dtype):
        self.kind = kind
        self.client = client
        self.world_size = world_size
        self.source = Source(dtype)
        self._engine: Any = None

    def send(self, student: WeightSource) -> None:
        """Send all weights."""
        self.source.student = student
        if self._engine is None:
            info = IPCTrainerInitInfo(rank=0) if self.kind == "ipc" else self._nccl()
            self._engine = WeightTransferTrainerFactory.trainer_init(info, client=self.client, source=self.source)
        self._engine.send_weights()

    def close(self) -> None:
        """Close the connection."""
        if self._engine is not None:
            self._engine.shutdown()

    def _nccl(self) -> NCCLTrainerInitInfo:
        """vLLM's workers join after this process, which is rank 0."""
        return NCCLTrainerInitInfo(
            rank=0, master_address=_own_address(), master_port=_free_port(), world_size=self.world_size + 1
        )


class Source(VllmWeightSource):
    """The student's weights under their names in HF checkpoints."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.student: WeightSource | None = None

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype and shape of each."""
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        assert self.student is not None, "`Sender.send` sets it"
        for name, tensor in self.student.named_weights():
            yield name, tensor.to(self.dtype)


def _own_address() -> str:
    return os.environ.get("MASTER_ADDR") or socket.gethostbyname(socket.gethostname())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
