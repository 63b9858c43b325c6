"""On-policy distillation of language models, with a choice of which tokens count.

`distil` trains, with the settings of `iwopd train`. The formulas, for use in other trainers, are `iwopd.numerics`. The
rest is the program `iwopd` (see `iwopd.cli`). Importing this package loads neither torch nor Hydra.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iwopd import numerics as numerics
    from iwopd.launch.library import Distilled, distil

__version__ = "0.1.0"
__all__ = ["Distilled", "__version__", "distil", "numerics"]


def __getattr__(name: str) -> object:
    if name in ("Distilled", "distil"):
        return getattr(import_module("iwopd.launch.library"), name)
    if name == "numerics":
        return import_module("iwopd.numerics")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
