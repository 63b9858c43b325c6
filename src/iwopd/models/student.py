"""The model under training: its weights, AdamW, and what a checkpoint holds of them."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iwopd._compat import revert_weight_conversion
from iwopd.config import OptimConfig
from iwopd.errors import NonFiniteError
from iwopd.models.language_model import LanguageModel
from iwopd.models.saved import check_adapters, check_model, save_weights
from iwopd.models.sharding import load_optimizer, save_optimizer, whole
from iwopd.parallel import world
from iwopd.types import Tokenizer

if TYPE_CHECKING:
    from peft import PeftModel


class Student:
    """A trainable language model.

    Args:
        language_model: the model, on its device.
        settings: of the optimiser.
        micro_batch_tokens: tokens per forward and backward; halved when memory runs out, and kept in checkpoints.
        adapters: the peft model around it, where LoRA is used.
        reshard: free gathered weights of a sharded model between forward and backward.
        share_prompts: read a prompt once for all of its responses, where the model can.

    Attributes:
        updates: optimiser steps taken.
        schedule: from an optimiser step, counted from 0, to its learning rate; `settings.lr` until it is set.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        settings: OptimConfig,
        micro_batch_tokens: int = 32768,
        adapters: "PeftModel | None" = None,
        reshard: bool = True,
        share_prompts: bool = False,
    ):
        self.reshard = reshard
        self.share_prompts = share_prompts
        self.lm = language_model
        self.settings = settings
        self.micro_batch_tokens = micro_batch_tokens
        self.adapters = adapters
        self.updates = 0
        self.schedule: Callable[[int], float] = lambda update: settings.lr
        self.optimizer = torch.optim.AdamW(
            list(self.parameters()),
            lr=settings.lr,
            betas=(settings.betas[0], settings.betas[1]),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,  # without it, a step makes temporaries as large as the model
        )

    @property
    def model(self) -> PreTrainedModel:
        return self.lm.model

    @property
    def device(self) -> torch.device:
        return self.lm.device

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those that are trained."""
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def apply_gradients(self, denominator: float) -> float:
        """Divide the summed gradients, clip them, and take one optimiser step; the norm before clipping.

        Raises:
            NonFiniteError: the norm is NaN or infinite; the weights stay as they were.
        """
        grads = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        for grad in grads:
            grad.div_(max(denominator, 1.0))
        norm = nn.utils.get_total_norm(grads)
        size = whole(norm).item()
        if not isfinite(size):
            raise NonFiniteError(
                f"the gradient norm is {size}; no step was taken: lower optim.lr, or look at train/grad_norm"
            )
        if self.settings.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(list(self.parameters()), self.settings.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.current_lr
        self.optimizer.step()
        self.updates += 1
        return size

    def clear_gradients(self) -> None:
        """Free them."""
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def current_lr(self) -> float:
        """The learning rate of the next optimiser step."""
        return self.schedule(self.updates)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights under their names in HF checkpoints, detached and whole, one after the other; adapters are merged
        into copies of theirs. All processes go through them together: each may be gathered from all.

        Tied weights come once; buffers that are saved, such as a router's corrections, come too.
        """
        return named_weights(self.model, None if self.adapters is None else _merged_weights(self.model))

    def save(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Model (or adapters) and tokenizer in HF format, and the optimiser's state, into an existing `folder`.

        Raises:
            ModelError: what was written does not load.
        """
        if self.adapters is None:
            self.export(folder / "model", tokenizer)
        else:
            self._save_adapters(folder / "model", tokenizer)
        save_optimizer(self.model, self.optimizer, self.updates, folder / "optimizer")

    def _save_adapters(self, folder: Path, tokenizer: Tokenizer) -> None:
        adapters: Any = self.adapters
        state = {name: whole(value) for name, value in adapters.state_dict().items() if "lora_" in name}

        def write() -> None:
            adapters.save_pretrained(folder, state_dict=state)
            check_adapters(folder, adapters)
            tokenizer.save_pretrained(folder)

        world().alone(write)

    def load_optimizer(self, folder: Path) -> None:
        """Take the optimiser's state from a checkpoint; the weights were loaded when the model was built."""
        self.updates = load_optimizer(self.model, self.optimizer, folder / "optimizer")

    def export(self, folder: Path, tokenizer: Tokenizer) -> None:
        """A plain HF folder, adapters merged, written as the weights come: nobody holds them all.

        Raises:
            ModelError: what was written does not load.
        """
        model: Any = self.model if self.adapters is None else self.adapters.get_base_model()

        write_model(model, self.named_weights(), folder)
        world().alone(lambda: tokenizer.save_pretrained(folder))


def named_weights(
    model: PreTrainedModel, named: Iterable[tuple[str, torch.Tensor]] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """See `Student.named_weights`.

    Args:
        named: the weights in place of the model's parameters.
    """
    saved = model.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in saved)
    for name, weight in chain(model.named_parameters() if named is None else named, buffers):
        yield from revert_weight_conversion(model, {name: whole(weight.detach())}).items()


def write_model(model: PreTrainedModel, weights: Iterator[tuple[str, torch.Tensor]], folder: Path) -> None:
    """A folder in HF format, less the tokenizer.

    Raises:
        ModelError: what was written does not load.
    """

    # All but the weights. It comes first, as it removes files of weights that it did not write itself.
    world().alone(lambda: model.save_pretrained(folder, state_dict={}))
    save_weights(weights, folder)
    world().alone(lambda: check_model(folder, type(model)))


@torch.no_grad()
def _merged_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights with peft's adapters added, computed beside the originals: merging in place and out again would
    leave rounding in them at every step."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        holder, _, last = name.rpartition(".")
        merged = whole(parameter.detach())
        while holder.endswith(".base_layer"):  # fused experts have two adapted parameters, and so two wrappers
            holder = holder.removesuffix(".base_layer")
            layer: Any = model.get_submodule(holder)
            if last == getattr(layer, "parameter_name", "weight"):
                for adapter in layer.active_adapters:
                    merged = merged + whole(layer.get_delta_weight(adapter)).to(merged.dtype)
        yield name.replace(".base_layer", ""), merged
