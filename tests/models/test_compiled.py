"""Compiled layers compute what the others compute; sampling does not use them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from iwopd.models.batch import collate_tokens
from iwopd.models.compiled import compile_layers
from iwopd.models.evaluation_mode import evaluation_mode
from iwopd.models.language_model import LanguageModel
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.types import Prompt


@pytest.fixture
def traced() -> Callable[..., Any]:
    """torch.compile without a compiler: what is traced runs as PyTorch's own operators."""
    torch.compiler.reset()
    yield partial(torch.compile, backend="aot_eager")
    torch.compiler.reset()


def gradients(lm: LanguageModel, tokens: Any) -> torch.Tensor:
    with evaluation_mode(lm.model):
        lm.token_logprobs(tokens).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in lm.parameters() if parameter.grad is not None])


@pytest.mark.process  # the tracer alone takes seconds to load
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch asks for, and hides, while it traces
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_the_same(
    checkpointed: bool, traced: Any, tiny_model: Callable[..., LanguageModel], make_rollouts: Callable[..., Any]
) -> None:
    rollouts = make_rollouts(4, seed=1)
    tokens = collate_tokens(rollouts, [(0, len(rollout.response_ids)) for rollout in rollouts])
    plain, compiled = tiny_model(0), tiny_model(0)
    calls: list[int] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        made = traced(function)
        return lambda *given, **named: (calls.append(1), made(*given, **named))[1]

    compile_layers(compiled, counted)
    if checkpointed:
        compiled.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.testing.assert_close(gradients(compiled, tokens), gradients(plain, tokens), rtol=1e-4, atol=1e-5)
    assert len(calls) == len(compiled.model.model.layers) * (2 if checkpointed else 1)  # pyright: ignore


def test_sampling_runs_the_layers_as_they_were(tiny_model: Callable[..., LanguageModel]) -> None:
    def refused(function: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(*given: Any, **named: Any) -> Any:
            raise AssertionError("a layer with a cache was compiled")

        return compiled

    prompts, sampling = [Prompt("a", [3, 4, 5], ""), Prompt("b", [6], "")], Sampling(max_tokens=5)
    plain, compiled = tiny_model(0), tiny_model(0)
    compile_layers(compiled, refused)
    found, expected = (HfEngine(lm, [-1]).generate(prompts, sampling, seed=0, stream=0) for lm in (compiled, plain))
    assert [each.response_ids.tolist() for each in found] == [each.response_ids.tolist() for each in expected]
    with pytest.raises(AssertionError, match="compiled"):
        compiled.model(input_ids=torch.tensor([[1, 2]]), use_cache=False)


def test_a_compiled_teacher_keeps_its_linear_layers(
    tiny_model: Callable[..., LanguageModel], make_rollouts: Callable[..., Any]
) -> None:
    """On a CPU scoring swaps them for an operator that the compiler cannot trace."""
    lm, seen = tiny_model(0), list[bool]()

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: (seen.append(swapped(lm)), function(*given, **named))[1]

    compile_layers(lm, watched)
    HfTeacher(lm, torch.device("cpu")).score(make_rollouts(2, seed=1), lambda length: (0, length))
    assert len(seen) == len(lm.model.model.layers)  # pyright: ignore
    assert not any(seen)


def swapped(lm: LanguageModel) -> bool:
    return any("forward" in vars(module) for module in lm.modules() if isinstance(module, torch.nn.Linear))
