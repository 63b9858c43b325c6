"""What runs inside vLLM's workers: taking over the student's weights.

In process, `iwopd.vllm.in_process` installs it; a server is started with

    VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model … \\
        --worker-extension-cls iwopd.vllm.worker.StudentWeights --logprobs-mode processed_logprobs
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn


class StudentWeights:
    """A vLLM worker extension: its methods are called with ``collective_rpc``, `self` being the worker."""

    def take_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load weights under their names in HF checkpoints; for an engine in the trainer's process."""
        worker: Any = self
        have_experts_packed_again(worker.model_runner.get_model())
        worker.reload_weights(weights_iterator=iter(weights))
        retie_head(worker.model_runner.get_model())

    def take_weights_from(self, path: str) -> None:
        """Load a safetensors file, or all of a folder; for servers that share a file system (or its memory)."""
        self.take_weights(_read(Path(path)))

    def retie(self) -> None:
        """After another way of loading weights, such as vLLM's own weight transfer."""
        worker: Any = self
        retie_head(worker.model_runner.get_model())


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path}: no safetensors files")
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  it is no dict
                yield name, stored.get_tensor(name)


def have_experts_packed_again(model: nn.Module) -> None:
    """To be called before a reload.

    On a CPU, vLLM packs the weights of fused experts for its kernels when it first loads them, but not across a reload
    (0.32): the kernels would read the new weights in the wrong order.
    """
    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None and next(layer.parameters()).device.type == "cpu":
            method.moe_kernel = None


@torch.no_grad()
def retie_head(model: nn.Module) -> None:
    """Give a tied head the embedding's new weights.

    On a CPU, vLLM packs the head's weights for its kernels and keeps the packed copy across a reload: without this, a
    model with tied embeddings keeps answering with the old head, and nothing says so.
    """
    get_language_model: Any = getattr(model, "get_language_model", lambda: model)
    text_model = get_language_model()
    head = getattr(text_model, "lm_head", None)
    embedding = getattr(getattr(text_model, "model", None), "embed_tokens", None)
    if head is None or embedding is None or head is embedding or not _tied(text_model):
        return
    head.weight = embedding.weight
    head.quant_method.process_weights_after_loading(head)


def _tied(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    return bool(getattr(getattr(config, "text_config", config), "tie_word_embeddings", False))
