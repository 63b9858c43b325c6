"""One model over several processes: each holds a part of every weight, and gathers a block of layers when it computes.

FSDP2 (`fully_shard`) around `LanguageModel`: its forward is the only way to what is differentiable, so that is where
weights are gathered, and tied weights, chunked heads, soft caps and adapters need no second path. With one process
nothing is sharded. The optimiser's state has one format for any number: what some have saved, others load.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers.modeling_layers import GradientCheckpointingLayer

from iwopd.models.batch import collate_tokens
from iwopd.models.language_model import LanguageModel
from iwopd.models.shared_prompts import agrees
from iwopd.parallel import world
from iwopd.types import Rollout, as_ids, as_logprobs

Weights = Iterator[tuple[str, Tensor]]
Result = TypeVar("Result")


def shard(lm: LanguageModel, mesh: DeviceMesh, *, gather: torch.dtype | None = None, whole_head: bool = False) -> None:
    """Have each process of `mesh` keep its part of the leader's weights, on the mesh's device.

    The others' may be of the device "meta", without memory: one process alone holds a whole model, in host memory, and
    for as long as it takes to hand it out.

    Gradients are summed over processes, never averaged: whoever sums a loss over them divides once, by what is the
    whole batch's.

    Args:
        mesh: one dimension, or (replicate, shard) for several copies of the sharded model.
        gather: dtype of gathered weights; None for the weights' own. Gradients are summed in float32 in any case.
        whole_head: keep the embeddings and the head whole, so that the head can be called outside of a forward pass.
    """
    lm.logits = world().alone(lambda: lm.logits)  # found out by a pass
    lm.shares_prompts = world().alone(lambda: agrees(lm))  # likewise
    weights, other = (lm.state_dict() if world().leader else {}), world().alone(lambda: _tensors_beside(lm))
    _move(lm, lambda: lm.to("meta"))
    policy = MixedPrecisionPolicy(param_dtype=gather, reduce_dtype=torch.float32)
    for block in blocks(lm):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    ignored = set(_head_parameters(lm)) if whole_head else None
    fully_shard(lm, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=ignored)
    for part in parts(lm):  # neither setter recurses
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    _move(lm, lambda: lm.to_empty(device=mesh.device_type))
    handed_out = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(lm, weights, options=handed_out)
    for (module, name), value in other.items():
        setattr(lm.get_submodule(module), name, value.to(mesh.device_type))
    _first_pass(lm)


def _move(lm: LanguageModel, change: Callable[[], object]) -> None:
    """Change where parameters are; PyTorch makes new ones, which are tied again as the model's config says."""
    change()
    lm.model.tie_weights()


def _tensors_beside(lm: LanguageModel) -> dict[tuple[str, str], Tensor]:
    """Buffers and other tensors that modules hold, which are no parameters, by module and name."""
    return {
        (place, name): value
        for place, module in lm.named_modules()
        for name, value in [*module.named_buffers(recurse=False), *vars(module).items()]
        if isinstance(value, Tensor)
    }


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


def as_held(value: Tensor, like: Tensor) -> Tensor:
    """`value` as this process holds `like`: a share where that is one, else all of it, for which see `whole`."""
    return value if isinstance(like, DTensor) else whole(value)


def taken(weights: Weights, take: Callable[[Weights], Result]) -> Result:
    """Have every process `take` weights that all gather. However far one of them comes, all weights are gone through:
    nobody is left gathering one."""

    def go_through() -> Result:
        try:
            return take(weights)
        finally:
            for _ in weights:
                pass

    return world().together(go_through)


def led(weights: Weights, take: Callable[[Weights], Result]) -> Result | None:
    """`taken` by the leader alone; on the others, None."""
    return taken(weights, lambda given: take(given) if world().leader else None)


def save_optimizer(model: nn.Module, optimizer: Optimizer, updates: int, folder: Path) -> None:
    """Every process writes its part of the optimiser's state into `folder`, by the parameters' names."""
    state = {"optimizer": get_optimizer_state_dict(model, optimizer), "updates": updates}
    _forget_if_unused(optimizer, updates)
    with _plain_errors():
        save(state, checkpoint_id=folder, no_dist=world().size == 1)


def load_optimizer(model: nn.Module, optimizer: Optimizer, folder: Path) -> int:
    """Take what `save_optimizer` wrote, however many processes wrote it; how many updates they had taken."""
    state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(model, optimizer), "updates": 0}
    with _plain_errors():
        load(state, checkpoint_id=folder, no_dist=world().size == 1)
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    _forget_if_unused(optimizer, state["updates"])
    return state["updates"]


def _forget_if_unused(optimizer: Optimizer, updates: int) -> None:
    """PyTorch gives an optimiser that has taken no step a state by one of zeros, which Adam would count."""
    if updates == 0:
        optimizer.state.clear()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What torch.distributed.checkpoint wraps, such as what the disk said; one process is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to (save|load) in a single process")
        try:
            yield
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None


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
