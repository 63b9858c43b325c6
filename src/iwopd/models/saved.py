"""What checkpoints hold of a model: weights in HF format, written as they come, and the optimiser's state.

A folder that was just written is checked before success is reported: the loader of transformers goes over the files as
it would to load them, into a model without memory, so names, shapes and the conversion of fused weights are its own.
One format for any number of processes: what some have saved, others load.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from transformers.utils import logging as transformers_logging

from iwopd.errors import ModelError, first_line
from iwopd.parallel import world

Weights = Iterator[tuple[str, Tensor]]
Result = TypeVar("Result")
FILE_BYTES = 2**31  # of weights in one file: what the process that writes them holds at one time


def led(weights: Weights, take: Callable[[Weights], Result]) -> Result | None:
    """Have the leader `take` weights that all processes gather; on the others, None.

    However far the leader comes, all weights are gone through: nobody is left gathering one.
    """

    def go_through() -> Result | None:
        try:
            return take(weights) if world().leader else None
        finally:
            for _ in weights:
                pass

    return world().together(go_through)


def save_weights(weights: Weights, folder: Path, limit: int = FILE_BYTES) -> None:
    """Write safetensors files of at most `limit` bytes each into `folder`, with an index where there are several."""
    led(weights, lambda given: _write(given, folder, limit))


def _write(weights: Weights, folder: Path, limit: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files, held, total = list[list[str]](), dict[str, Tensor](), 0

    def flush() -> None:
        files.append(sorted(held))
        save_file(held, folder / f"{len(files)}.safetensors", metadata={"format": "pt"})
        held.clear()

    for name, weight in weights:
        if held and sum(each.nbytes for each in held.values()) + weight.nbytes > limit:
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


def save_optimizer(model: nn.Module, optimizer: Optimizer, updates: int, folder: Path) -> None:
    """Every process writes its part of the optimiser's state into `folder`, by the parameters' names."""
    state = {"optimizer": get_optimizer_state_dict(model, optimizer), "updates": updates}
    with _plain_errors():
        save(state, checkpoint_id=folder, no_dist=world().size == 1)


def load_optimizer(model: nn.Module, optimizer: Optimizer, folder: Path) -> int:
    """Take what `save_optimizer` wrote, however many processes wrote it; how many updates they had taken."""
    state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(model, optimizer), "updates": 0}
    with _plain_errors():
        load(state, checkpoint_id=folder, no_dist=world().size == 1)
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    return state["updates"]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What torch.distributed.checkpoint wraps, such as what the disk said; one process is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to (save|load) in a single process")
        try:
            yield
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None


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
