"""A weighting that goes wrong on one rank, in the midst of a pass that the others take part in."""

import os
import signal
import time

import torch
from torch import Tensor

from iwopd.errors import ConfigError
from iwopd.numerics import WeightInput


def weights(given: WeightInput) -> Tensor:
    """Uniform weights, until the first rollout batch comes to the rank that FAULT_RANK names."""
    if os.environ.get("RANK") == os.environ["FAULT_RANK"] and given.seeds != [0, 1]:  # not when it is tried first
        match os.environ["FAULT"]:
            case "raise":
                raise ConfigError("weighting.path=faults: went wrong")
            case "bug":
                raise KeyError("a bug")
            case "memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            case "hang":
                time.sleep(600)
            case _:
                os.kill(os.getpid(), signal.SIGKILL)
    return torch.ones_like(given.advantages)
