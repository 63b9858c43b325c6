"""A folder that was just written holds everything its model needs: checked before success is reported.

The loader of transformers goes over the files as it would to load them, into a model without memory: names, shapes and
the conversion of fused weights are its own, and nothing is there twice.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from iwopd.errors import ModelError, first_line

if TYPE_CHECKING:
    from peft import PeftModel


def check_model(folder: Path, kind: type[Any]) -> None:
    """`folder` must load as a model of class `kind`.

    Raises:
        ModelError: weights are missing or have other shapes, or it cannot be read.
    """
    transformers_logging.set_verbosity_error()
    found: dict[str, Any]
    try:
        _, found = kind.from_pretrained(
            folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # transformers and safetensors raise a dozen types here
        raise ModelError(f"what was saved cannot be loaded again: {first_line(error)}") from error
    wrong = [*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]
    if wrong:
        raise ModelError(
            f"what was saved cannot be loaded again: {len(wrong)} weights are missing or of another shape, first "
            f"{min(wrong)}"
        )


def check_adapters(folder: Path, adapters: "PeftModel") -> None:
    """`folder` must hold the adapters of this peft model.

    Raises:
        ModelError: weights are missing or have other shapes, or it cannot be read.
    """
    from peft import PeftConfig, get_peft_model_state_dict  # need not be installed

    weights: dict[str, Any] = get_peft_model_state_dict(adapters)
    try:
        PeftConfig.from_pretrained(str(folder))
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    except Exception as error:  # safetensors raises its own, files OSError
        raise ModelError(f"the adapters that were saved cannot be loaded again: {first_line(error)}") from error
    wrong = sorted(name for name, value in weights.items() if there.get(name) != tuple(value.shape))
    if wrong or not weights:
        raise ModelError(
            f"the adapters that were saved cannot be loaded again: {len(wrong)} of {len(weights)} weights are missing "
            f"or of another shape, first {wrong[0] if wrong else 'all'}"
        )
