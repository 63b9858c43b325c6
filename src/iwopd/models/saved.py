"""What checkpoints hold of a model: weights in HF format, written as they come.

A folder that was just written is checked before success is reported: the loader of transformers goes over the files as
it would to load them, into a model without memory, so names, shapes and the conversion of fused weights are its own.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging as transformers_logging

from iwopd.errors import ModelError, first_line
from iwopd.models.sharding import Weights, led

FILE_BYTES = 2**31  # of weights in one file: what the process that writes them holds at one time


def save_weights(weights: Weights, folder: Path) -> None:
    """Write safetensors files of at most FILE_BYTES each into `folder`, with an index where there are several."""
    led(weights, lambda given: _write(given, folder))


def _write(weights: Weights, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files, held, total = list[list[str]](), dict[str, Tensor](), 0

    def flush() -> None:
        files.append(sorted(held))
        save_file(held, folder / f"{len(files)}.safetensors", metadata={"format": "pt"})
        held.clear()

    for name, weight in weights:
        if held and sum(each.nbytes for each in held.values()) + weight.nbytes > FILE_BYTES:
            flush()
        held[name] = weight.to("cpu").contiguous()
        total += weight.nbytes
    flush()
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{place:05d}-of-{len(files):05d}.safetensors" for place in range(1, len(files) + 1)]
        where = {weight: file for file, inside in zip(names, files, strict=True) for weight in inside}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    for place, name in enumerate(names, 1):
        (folder / f"{place}.safetensors").rename(folder / name)


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
