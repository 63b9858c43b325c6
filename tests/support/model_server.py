"""A server in vLLM's place that has the student: it takes weights from files and answers with them, always the same.

vLLM's own answers depend on how requests meet in a batch; what must be the same to the bit is tested against this one.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from support.fake_server import FakeServer


class ModelServer(FakeServer):
    """Answers one request after the other, each from the seed that it brings.

    Args:
        folder: the model that it begins with.
        before: called before each completion, with how many there were; may wait, or raise.

    Attributes:
        loaded: how often it was given weights.
    """

    def __init__(self, folder: Path, before: Callable[[int], None] = lambda count: None):
        self.loaded = 0
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._lock = threading.Lock()
        super().__init__(before)  # pyright: ignore[reportArgumentType]  what returns nothing misbehaves in nothing

    def control(self, path: str, body: dict[str, Any]) -> None:
        """See `FakeServer.control`: takes the weights of a file."""
        if path == "/collective_rpc":
            with self._lock:
                self._model.load_state_dict(load_file(body["args"][0]), strict=False)
                self._model.tie_weights()
                self.loaded += 1

    def completion(self, body: dict[str, Any], shift: float = 0.0) -> dict[str, Any]:  # pyright: ignore
        """What the model writes, with the seed of the request."""
        generator, ends = torch.Generator().manual_seed(body["seed"] % 2**63), body["stop_token_ids"]
        ids, logprobs, given, cache = list[int](), list[float](), torch.tensor([body["prompt"]]), None
        with self._lock, torch.inference_mode():
            while len(ids) < body["max_tokens"] and not (ids and ids[-1] in ends):
                out = self._model(given, past_key_values=cache, use_cache=True)
                cache, found = out.past_key_values, out.logits[0, -1].log_softmax(-1)
                ids.append(int(torch.multinomial(found.exp(), 1, generator=generator)))
                logprobs.append(float(found[ids[-1]]))
                given = torch.tensor([ids[-1:]])
        why = "stop" if ids[-1] in ends else "length"
        return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": logprobs}, "finish_reason": why}]}
