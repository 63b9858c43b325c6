"""The model's differentiable work is one forward of one module: what shards its weights can gather around it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from iwopd.losses import LOSSES
from iwopd.models.batch import Batch, collate
from iwopd.models.evaluation_mode import evaluation_mode
from iwopd.models.language_model import LanguageModel
from iwopd.training.micro_batch import train_on
from iwopd.training.objective import Objective
from iwopd.types import Signal
from iwopd.weighting.iw import Iw


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of one process: weights are DTensors outside of a forward, and any use of them there is an error."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('group') / 'store'}", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(lm: LanguageModel, mesh: Any) -> LanguageModel:
    for layer in lm.model.model.layers:  # pyright: ignore
        fully_shard(layer, mesh=mesh)
    fully_shard(lm, mesh=mesh)
    return lm


@pytest.fixture(scope="module")
def batch(make_rollouts: Callable[..., Any], make_scored: Callable[..., Any], tiny_model: Callable[..., Any]) -> Batch:
    return collate(make_scored(make_rollouts(5, seed=3), tiny_model(1), signal=Signal("full")), range(5))


def gradient(lm: LanguageModel, batch: Batch, kind: str, teacher: LanguageModel) -> tuple[Tensor, dict[str, float]]:
    with evaluation_mode(lm.model):
        objective = Objective(Iw(), LOSSES[kind]())
        sums = train_on(lm, batch, objective, weights=None, progress=0.0, teacher_heads={"": teacher.head}, dropouts=[])
    made = [parameter.grad for parameter in lm.parameters()]
    return torch.cat([(each.full_tensor() if isinstance(each, DTensor) else each).flatten() for each in made]), vars(
        sums
    )


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", LOSSES)
def test_sharded_weights_give_the_same_gradient(
    kind: str, checkpointed: bool, mesh: Any, batch: Batch, tiny_model: Callable[..., LanguageModel]
) -> None:
    models = [tiny_model(0), sharded(tiny_model(0), mesh)]
    if checkpointed:
        for lm in models:
            lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    (expected, sums), (found, same) = (gradient(lm, batch, kind, tiny_model(1)) for lm in models)
    assert expected.norm() > 0
    assert torch.equal(found, expected)
    assert sums == same


def test_sharded_weights_score_the_same_and_cannot_be_used_outside(
    mesh: Any, batch: Batch, tiny_model: Callable[..., LanguageModel]
) -> None:
    whole, lm = tiny_model(0), sharded(tiny_model(0), mesh)
    with torch.no_grad():
        assert torch.equal(lm.token_logprobs(batch.tokens), whole.token_logprobs(batch.tokens))
        lm.reshard()  # type: ignore[operator]  # FSDP's
        with pytest.raises(RuntimeError, match="DTensor"):
            lm.head(torch.zeros(1, 32))
