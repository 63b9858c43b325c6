"""Token by token with a cache: left-padded prompts, and rows that leave when they are finished."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from iwopd.models.language_model import LanguageModel
from iwopd.models.packed import packed
from iwopd.rollout.caches import cache_argument, new_cache


@contextmanager
def decoding_context(model: LanguageModel) -> Iterator[None]:
    """No gradients, and weights that are cast or packed once for all tokens: in inference mode autocast would cast them
    at every token, so that is for weights which need no cast."""
    off = torch.no_grad() if model.autocast_enabled else torch.inference_mode()
    with off, model.autocast(), packed(model):
        yield


class Decoding:
    """Left-padded prompts and the cache that grows after them."""

    def __init__(self, model: LanguageModel, prompts: list[list[int]]):
        self.model = model
        width = max(map(len, prompts))
        self.ids = torch.zeros(len(prompts), width, dtype=torch.long)
        self.mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            self.ids[row, width - len(prompt) :] = torch.tensor(prompt)
            self.mask[row, width - len(prompt) :] = 1
        self.padded = bool((self.mask == 0).any())
        self.ids, self.mask = self.ids.to(model.device), self.mask.to(model.device)
        self.positions = self.mask.cumsum(-1).clamp(min=1) - 1
        self.cache = new_cache(model)
        # State-space models name it so; their state holds no padding, so after the prompts they want no mask.
        self.recurrent = cache_argument(model) == "cache_params"
        self.past: dict[str, Any] = {"cache_params" if self.recurrent else "past_key_values": self.cache}

    def first_logits(self) -> Tensor:
        logits = self._forward(self.ids)
        self.padded = self.padded and not self.recurrent
        self.positions = self.positions[:, -1:]
        return logits

    def next_logits(self, chosen: Tensor) -> Tensor:
        self.positions = self.positions + 1
        if self.padded:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=-1)
        return self._forward(chosen[:, None])

    def keep(self, rows: Tensor) -> None:
        chosen: Any = rows
        self.cache.reorder_cache(chosen)  # unlike batch_select_indices, recurrent layers have it too
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def _forward(self, ids: Tensor) -> Tensor:
        output = self.model.decoder(
            input_ids=ids,
            attention_mask=self.mask if self.padded else None,  # without padding, attention needs no mask
            position_ids=self.positions,
            use_cache=True,
            **self.past,
        )
        return self.model.head(output.last_hidden_state[:, -1])
