"""Forward passes without noise, also while a model is trained.

A_t, the ratio and the importance correction compare log-probs of one policy. In training mode a model differs from
itself: dropout (OPT and GPT-2 are published with 0.1) and the noise of an MoE router move log-probs by tenths of a nat,
which would be taken for disagreement with the teacher.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model` is in evaluation mode while the block lasts and after it; layers whose gradient checkpointing is switched
    on are recomputed in backward all the same."""
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.eval)
        for module in model.modules():
            if not getattr(module, "gradient_checkpointing", False):
                continue
            if isinstance(module, GradientCheckpointingLayer):
                _checkpoint(module, stack)
            elif not any(isinstance(part, GradientCheckpointingLayer) for part in module.modules()):
                _checkpoint_inside(module, stack)
        yield


def adapter_dropouts(model: nn.Module) -> list[nn.Dropout]:
    """The dropout of adapters (`student.lora.dropout`), the one kind that training applies."""
    holders = (getattr(module, "lora_dropout", None) for module in model.modules())
    found = [each for holder in holders if isinstance(holder, nn.ModuleDict) for each in holder.values()]
    return [each for each in found if isinstance(each, nn.Dropout) and each.p > 0]


def _checkpoint(layer: nn.Module, stack: ExitStack) -> None:
    """transformers checkpoints a layer that is in training mode when it is called; while it computes, it is not."""

    def computes(layer: nn.Module, *_: object) -> None:
        layer.training = False

    def is_called(layer: nn.Module, *_: object) -> None:
        layer.training = True

    layer.training = True
    stack.callback(layer.register_forward_pre_hook(computes).remove)
    stack.callback(layer.register_forward_hook(is_called, always_call=True).remove)


def _checkpoint_inside(module: nn.Module, stack: ExitStack) -> None:
    """In code that comes with a model, the module that holds the layers asks for training mode within its forward. What
    it has of dropout itself is set to 0; the layers stay in evaluation mode."""
    module.training = True
    for name, value in list(vars(module).items()):
        if "drop" in name and isinstance(value, float):
            setattr(module, name, 0.0)
            stack.callback(setattr, module, name, value)
