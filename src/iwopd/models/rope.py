"""Rotary positions whose frequencies depend on the longest sequence of a batch, fixed for a whole run.

`longrope` has one set of frequencies for batches within the length a model was first trained on and another beyond,
`dynamic` a base that grows with the longest sequence it has seen. A row's log-probs would depend on its neighbours and
on where a window cuts it, and keys that wait in a cache would have been turned by other frequencies than queries. `pin`
has every pass use those of the longest prompt and response a run can have; `vllm_overrides` sets the same in vLLM.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from iwopd.errors import ModelError


def parameters_by_batch(config: PreTrainedConfig) -> dict[str | None, dict[str, Any]]:
    """The rope parameters whose frequencies depend on the batch, by layer type; None for a model that has one kind."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = {name: value for name, value in found.items() if isinstance(value, dict)}
    return {name: each for name, each in (nested or {None: found}).items() if _kind(each) in ("longrope", "dynamic")}


def _kind(parameters: dict[str, Any]) -> str:
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    return "longrope" if kind == "su" else "dynamic" if "dynamic" in kind else kind


def threshold(config: PreTrainedConfig, parameters: dict[str, Any]) -> int:
    """Tokens up to which the frequencies are those of a short text."""
    if _kind(parameters) == "dynamic":
        return config.max_position_embeddings
    return parameters.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", config.max_position_embeddings
    )


def context_limit(config: PreTrainedConfig) -> int | None:
    """Tokens a model can attend to; None where its config sets no limit. `dynamic` stretches it by its factor."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:  # XLNet says -1
        return None
    factors = [each.get("factor") or 1 for each in parameters_by_batch(config).values() if _kind(each) == "dynamic"]
    return int(limit * min(factors, default=1))


def pin(model: PreTrainedModel, context: int, said: str) -> None:
    """Have every pass of `model` use the frequencies of a sequence of `context` tokens.

    Args:
        context: the longest prompt and response together, tokens.
        said: the setting and its value, for messages.

    Raises:
        ModelError: the architecture computes them somewhere else than in a module that is given positions, and the run
            goes beyond the length at which they change.
    """
    config = model.config.get_text_config(decoder=True)
    found = parameters_by_batch(config)
    if not found:
        return
    modules = [module for module in model.modules() if _is_rotary(module)]
    for module in modules:
        module.forward = _pinned(module.forward, context)
    lowest = min(threshold(config, each) for each in found.values())
    if not modules and context > lowest:
        kinds = " and ".join(sorted({_kind(each) for each in found.values()}))
        raise ModelError(
            f"{said}: {type(model).__name__} has RoPE of type {kinds}, whose frequencies depend on the longest row of "
            f"a batch beyond {lowest} tokens, and they cannot be pinned in its code; keep prompt and response within "
            f"{lowest} tokens, or name another model"
        )


def _is_rotary(module: nn.Module) -> bool:
    return "rotary" in type(module).__name__.lower() and "position_ids" in signature(module.forward).parameters


def _pinned(forward: Callable[..., Any], context: int) -> Callable[..., Any]:
    """`forward` with one more position, the context's last; what it gives for that is cut off again."""
    accepted = signature(forward)

    @wraps(forward)
    def pinned(*args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        given = accepted.bind(*args, **kwargs)
        positions: Tensor = given.arguments["position_ids"]
        last = positions.new_full((*positions.shape[:-1], 1), context - 1)
        given.arguments["position_ids"] = torch.cat([positions, last], dim=-1)
        output = forward(*given.args, **given.kwargs)
        return output[..., :-1, :] if isinstance(output, Tensor) else tuple(part[..., :-1, :] for part in output)

    return pinned


def vllm_overrides(config: PreTrainedConfig, context: int) -> dict[str, Any]:
    """vLLM's `hf_overrides` for the frequencies that `pin` gives; empty where they do not depend on the batch.

    vLLM's `longrope` chooses by its own longest sequence, and takes no attention factor; its `dynamic` never changes.
    """
    found = dict(_overridden(config, context))
    if not found:
        return {}
    whole = dict(config.rope_parameters) | found if None not in found else found[None]
    reached = max(config.max_position_embeddings, context + 1)  # vLLM counts the token it samples when it scores
    return {"rope_parameters": whole, "max_position_embeddings": reached}


def _overridden(config: PreTrainedConfig, context: int) -> Iterator[tuple[str | None, dict[str, Any]]]:
    for layer_type, parameters in parameters_by_batch(config).items():
        kind = _kind(parameters)
        kept = {name: value for name, value in parameters.items() if name not in ("type", "factor", "attention_factor")}
        given = {} if layer_type is None else {"layer_type": layer_type}
        frequencies, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=context, **given)
        if kind == "dynamic":  # plain RoPE of another base: frequency i is base^(-2 i / dim)
            width = 2 * len(frequencies)
            base = float(frequencies[-1].double()) ** (-width / (width - 2))
            yield layer_type, kept | {"rope_type": "default", "rope_theta": base}
            continue
        long = context > threshold(config, parameters)
        factor = parameters["long_factor" if long else "short_factor"]
        scale = parameters.get("long_mscale" if long else "short_mscale") or attention_factor
        same = {"long_factor": factor, "short_factor": factor, "long_mscale": scale, "short_mscale": scale}
        yield layer_type, kept | {"rope_type": "longrope"} | same


def server_problem(config: PreTrainedConfig, context: int, served: int | None) -> str | None:
    """Why a vLLM server that was started for `served` tokens computes other frequencies; None where it does not."""
    for parameters in parameters_by_batch(config).values():
        kind, limit = _kind(parameters), threshold(config, parameters)
        if kind == "dynamic" and context > limit:
            return f"RoPE of type dynamic beyond {limit} tokens is computed otherwise in vLLM's servers"
        if kind == "longrope" and served is not None and (served > limit) != (context > limit):
            return (
                f"RoPE of type longrope has other frequencies beyond {limit} tokens: start it with --max-model-len "
                f"{context if context > limit else limit}"
            )
    return None
