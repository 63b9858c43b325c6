"""Keys and values of the tokens so far, held so that the next token costs little."""

from inspect import signature
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from iwopd.models.language_model import CACHES, LanguageModel

ROOM = 128  # tokens


def cache_argument(model: LanguageModel) -> str | None:
    """What the architecture calls its cache; None where it takes none of the usual kind."""
    parameters = signature(model.decoder.forward).parameters
    if "input_ids" not in parameters:  # wrapped: what it takes cannot be read
        return "past_key_values"
    return next((name for name in CACHES if name in parameters), None)


class RoomyLayer(DynamicLayer):
    """A layer's keys and values with room for those of tokens to come: transformers' own copies all of them at every
    token, this one at every ROOM-th."""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *place: Any,  # noqa: ANN401  as transformers has it
        **more: Any,  # noqa: ANN401  likewise
    ) -> tuple[Tensor, Tensor]:
        """See `DynamicLayer.update`; the same numbers, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = appended(self.keys, key_states), appended(self.values, value_states)
        return self.keys, self.values


def appended(held: Tensor | None, new: Tensor) -> Tensor:
    """[batch, heads, tokens, dim] of both along the tokens, in the place of `held` where that is a view with room."""
    if held is None or not held.numel():
        held = new[..., :0, :]
    start, stop = held.shape[-2], held.shape[-2] + new.shape[-2]
    if start and stop * held.shape[-1] <= held.stride(-3):
        both = held.as_strided((*held.shape[:-2], stop, held.shape[-1]), held.stride())
    else:
        both = new.new_empty((*new.shape[:-2], stop + ROOM, new.shape[-1]))[..., :stop, :]
        both[..., :start, :] = held
    both[..., start:, :] = new
    return both


class Bfloat16Cache(DynamicCache):
    """Under autocast attention casts keys and values that are not bfloat16, those of all tokens at every token."""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *place: Any,  # noqa: ANN401  as transformers has it
        **more: Any,  # noqa: ANN401  likewise
    ) -> tuple[Tensor, Tensor]:
        """See `Cache.update`; what is kept, and returned, is bfloat16."""
        return super().update(key_states.bfloat16(), value_states.bfloat16(), *place, **more)


def new_cache(model: LanguageModel) -> DynamicCache:
    """An empty one, in the dtype that attention computes in; layers with a window or a state stay transformers' own."""
    cache = (Bfloat16Cache if model.autocast_enabled else DynamicCache)(config=model.model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
