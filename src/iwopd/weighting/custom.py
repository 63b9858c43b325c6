"""A scheme of the user's own: any function of a `WeightInput`, named by module and name."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from iwopd.errors import ConfigError
from iwopd.setting import setting
from iwopd.weighting.base import NAME, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from iwopd.numerics import WeightInput


@dataclass(kw_only=True, slots=True)
class Custom(Weighting):
    """A scheme of the user's own."""

    scheme: str = setting("custom", NAME)
    path: str = setting(MISSING, "pkg.module:function, from a WeightInput to weights [batch, time]; 0 leaves out")
    needs_batch: bool = setting(False, "the function must see the whole batch at once (one more student pass)")

    def weights(self, given: "WeightInput") -> "Tensor":
        """What the function returns.

        Raises:
            ConfigError: it cannot be imported, or raises.
        """
        function = imported(self.path)
        try:
            return function(given)
        except (Exception, SystemExit) as error:  # it may raise anything
            if type(error).__name__ == "OutOfMemoryError":  # torch's, by name: torch is not imported here
                raise
            raise ConfigError(f"weighting.path={self.path}: raised {type(error).__name__}: {error}; fix it") from error

    @property
    def name(self) -> str:
        """See `Weighting`."""
        return self.path

    @property
    def annealed(self) -> str | None:
        """The function may use the progress, or not."""
        return f"weighting.path={self.path} (which gets the progress)"

    @classmethod
    def presets(cls) -> Mapping[str, Weighting]:
        """None: there is no function before the user names one."""
        return {}

    def problems(self) -> Iterator[str]:
        """See `Weighting`."""
        if self.path.count(":") != 1:
            yield f"weighting.path={self.path}: not of the form pkg.module:function; name a function that way"


def imported(path: str) -> Callable[..., Any]:
    """The function that ``module:name`` names.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # a scheme may stand beside where the run is started
    try:
        function = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything while it is imported
        raise ConfigError(f"weighting.path={path}: cannot be imported ({error}); check module and function") from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise ConfigError(f"weighting.path={path}: is not a function; name one")
    return function
