"""One model over several processes: each holds a part of every weight, and gathers a block of layers when it computes.

FSDP2 (`fully_shard`) around `LanguageModel`: its forward is the only way to what is differentiable, so that is where
weights are gathered, and tied weights, chunked heads, soft caps and adapters need no second path. With one process
nothing is sharded, and everything here does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from iwopd.models.batch import collate_tokens
from iwopd.models.language_model import LanguageModel
from iwopd.types import Rollout, as_ids, as_logprobs


def shard(lm: LanguageModel, mesh: DeviceMesh, *, gather: torch.dtype | None = None, whole_head: bool = False) -> None:
    """Have each process of `mesh` keep its part of the weights, on the mesh's device.

    Gradients are summed over processes, never averaged: whoever sums a loss over them divides once, by what is the
    whole batch's.

    Args:
        mesh: one dimension, or (replicate, shard) for several copies of the sharded model.
        gather: dtype of gathered weights; None for the weights' own. Gradients are summed in float32 in any case.
        whole_head: keep the embeddings and the head whole, so that the head can be called outside of a forward pass.
    """
    policy = MixedPrecisionPolicy(param_dtype=gather, reduce_dtype=torch.float32)
    for block in blocks(lm):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    ignored = set(_head_parameters(lm)) if whole_head else None
    fully_shard(lm, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=ignored)
    for part in parts(lm):  # neither setter recurses
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    _first_pass(lm)


def blocks(lm: LanguageModel) -> list[nn.Module]:
    """The outermost layers that gradient checkpointing would recompute: the model's blocks, in all architectures."""
    found: list[nn.Module] = []
    inside = set[nn.Module]()
    for module in lm.modules():
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def parts(lm: nn.Module) -> list[FSDPModule]:
    """What is gathered at one time each: the blocks, and the model with what is left."""
    return [module for module in lm.modules() if isinstance(module, FSDPModule)]


def is_sharded(lm: nn.Module) -> bool:
    """Whether passes through the model are ones that all processes make together."""
    return isinstance(lm, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one, gathered: to be called by all processes in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered(lm: LanguageModel) -> Iterator[None]:
    """All weights are whole on every process while the block lasts: for sampling, where each goes its own way."""
    if not is_sharded(lm):
        yield
        return
    with torch.no_grad():
        for part in parts(lm):
            part.unshard()
    with kept_gathered(lm):
        yield


@contextmanager
def kept_gathered(lm: LanguageModel, *, keep: bool = True) -> Iterator[None]:
    """Weights that a pass has gathered stay so while the block lasts: less to send, and more memory."""
    if not keep or not is_sharded(lm):
        yield
        return
    for part in parts(lm):
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts(lm):
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def _head_parameters(lm: LanguageModel) -> Iterator[nn.Parameter]:
    yield from lm.output_embeddings.parameters()
    yield from lm.model.get_input_embeddings().parameters()


@torch.no_grad()
def _first_pass(lm: LanguageModel) -> None:
    """The model must be the first to be called: a block called before would take itself for the whole."""
    training, one = lm.model.training, as_ids([0])
    rollout = Rollout("", one, one, as_logprobs([0.0]), "length")
    lm.model.eval()
    lm.token_logprobs(collate_tokens([rollout], [(0, 1)], device=lm.device))
    lm.model.train(training)
