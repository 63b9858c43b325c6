"""The model under training: its weights, AdamW, and what a checkpoint holds of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iwopd._compat import revert_weight_conversion
from iwopd.config import OptimConfig
from iwopd.errors import NonFiniteError
from iwopd.models.language_model import LanguageModel
from iwopd.models.saved import check_adapters, check_model
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
    ):
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
        if not norm.isfinite():
            raise NonFiniteError(
                f"the gradient norm is {norm.item()}; no step was taken: lower optim.lr, or look at train/grad_norm"
            )
        if self.settings.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(list(self.parameters()), self.settings.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.current_lr
        self.optimizer.step()
        self.updates += 1
        return norm.item()

    def clear_gradients(self) -> None:
        """Free them."""
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def current_lr(self) -> float:
        """The learning rate of the next optimiser step."""
        return self.schedule(self.updates)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights under their names in HF checkpoints, detached; adapters are merged into copies of theirs.

        Tied weights come once; buffers that are saved, such as a router's corrections, come too.
        """
        if self.adapters is None:
            weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        else:
            weights = dict(_merged_weights(self.model))
        saved = self.model.state_dict().keys()
        weights |= {name: buffer for name, buffer in self.model.named_buffers() if name in saved}
        yield from revert_weight_conversion(self.model, weights).items()

    def save(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Model (or adapters) and tokenizer in HF format, and the optimiser's state, into an existing `folder`.

        Raises:
            ModelError: what was written does not load.
        """
        (self.adapters or self.model).save_pretrained(str(folder / "model"))
        if self.adapters is None:
            check_model(folder / "model", type(self.model))
        else:
            check_adapters(folder / "model", self.adapters)
        tokenizer.save_pretrained(folder / "model")
        torch.save({"optimizer": self.optimizer.state_dict(), "updates": self.updates}, folder / "optimizer.pt")

    def load_optimizer(self, folder: Path) -> None:
        """Take the optimiser's state from a checkpoint; the weights were loaded when the model was built."""
        state = torch.load(folder / "optimizer.pt", map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]

    def export(self, folder: Path, tokenizer: Tokenizer) -> None:
        """A plain HF folder. Adapters are merged for it and taken out again, to rounding: it is the end of a run.

        Raises:
            ModelError: what was written does not load.
        """
        model: Any = self.model
        if self.adapters is not None:
            self.adapters.merge_adapter()
            model = self.adapters.get_base_model()
        try:
            state = _without_adapters(model) if self.adapters is not None else None
            model.save_pretrained(folder, state_dict=state)
            check_model(folder, type(model))
            tokenizer.save_pretrained(folder)
        finally:
            if self.adapters is not None:
                self.adapters.unmerge_adapter()


@torch.no_grad()
def _merged_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights with peft's adapters added, computed beside the originals: merging in place and out again would
    leave rounding in them at every step."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        holder, _, last = name.rpartition(".")
        merged = parameter.detach()
        while holder.endswith(".base_layer"):  # fused experts have two adapted parameters, and so two wrappers
            holder = holder.removesuffix(".base_layer")
            layer: Any = model.get_submodule(holder)
            if last == getattr(layer, "parameter_name", "weight"):
                for adapter in layer.active_adapters:
                    merged = merged + layer.get_delta_weight(adapter).to(merged.dtype)
        yield name.replace(".base_layer", ""), merged


def _without_adapters(model: nn.Module) -> dict[str, Any]:
    return {name.replace(".base_layer", ""): value for name, value in model.state_dict().items() if "lora_" not in name}
