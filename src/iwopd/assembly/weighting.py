"""The weighting schemes: every one there is, in one list."""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwopd.config import (
    AnnealedPrefixWeighting,
    CustomWeighting,
    IwSurrogateWeighting,
    IwWeighting,
    PrefixBoostWeighting,
    PrefixRatioWeighting,
    UniformWeighting,
    WeightingConfig,
    WindowWeighting,
)
from iwopd.errors import ConfigError

if TYPE_CHECKING:
    from iwopd.weighting.base import Weighting


def weighting(config: WeightingConfig) -> "Weighting":
    """The scheme of the `weighting` group, with its parameters."""
    from iwopd.numerics import weighting as schemes
    from iwopd.numerics import window_bounds
    from iwopd.weighting.base import Weighting

    match config:
        case UniformWeighting():
            return Weighting("uniform", lambda given: given.mask.to(given.advantages.dtype), keeps_all=True)
        case WindowWeighting(side="random", fraction=fraction):
            return Weighting("random window", partial(schemes.random_window_weights, fraction=fraction))
        case WindowWeighting(fraction=fraction):
            side: Any = config.side  # its choices are checked by the schema
            return Weighting(
                f"{side} window",
                partial(schemes.fixed_window_weights, fraction=fraction, side=side),
                bounds=lambda length, progress: window_bounds(length, fraction, side),
            )
        case IwWeighting(scheme="iw", gamma=gamma):
            return Weighting(
                "iw", lambda given: schemes.iw_weights(given.advantages, given.mask, gamma), keeps_all=True
            )
        case IwWeighting(scheme="iw_reversed", gamma=gamma):
            return Weighting("iw_reversed", partial(schemes.iw_reversed_weights, gamma=gamma), keeps_all=True)
        case IwWeighting(gamma=gamma):
            return Weighting("iw_signed", partial(schemes.iw_signed_weights, gamma=gamma), keeps_all=True)
        case IwSurrogateWeighting():
            return Weighting("iw_surrogate", schemes.iw_surrogate_weights, keeps_all=True)
        case PrefixRatioWeighting(alpha=alpha, gamma=gamma):
            scheme = partial(schemes.prefix_ratio_weights, alpha=alpha, gamma=gamma)
            return Weighting("prefix_ratio", scheme, needs_batch=True, keeps_all=True)
        case PrefixBoostWeighting(boost=boost):
            share = _annealed(config)
            return Weighting(
                "prefix_boost",
                lambda given: schemes.prefix_boost_weights(given, share(given.progress), boost),
                keeps_all=True,
            )
        case AnnealedPrefixWeighting():
            share = _annealed(config)
            return Weighting(
                "prefix_mask",
                lambda given: schemes.fixed_window_weights(given, share(given.progress), "first"),
                bounds=lambda length, progress: window_bounds(length, share(progress), "first"),
            )
        case CustomWeighting(path=path, needs_batch=needs_batch):
            return _tried(Weighting(path, _guarded(path, _imported(path)), needs_batch=needs_batch))
        case other:
            raise ConfigError(f"weighting={type(other).__name__}: no scheme of that kind")


def schemes(chosen: WeightingConfig) -> dict[str, "Weighting"]:
    """Schemes to compare on the same rollouts, by preset name, with a user's own where it is the one chosen."""
    listed: dict[str, WeightingConfig] = {
        "uniform": UniformWeighting(scheme="uniform"),
        **{f"{side}30": WindowWeighting(scheme="window", side=side) for side in ("first", "middle", "last", "random")},
        **{name: IwWeighting(scheme=name) for name in ("iw", "iw_signed", "iw_reversed")},
        "iw_surrogate": IwSurrogateWeighting(scheme="iw_surrogate"),
        "prefix_ratio": PrefixRatioWeighting(scheme="prefix_ratio"),
        "prefix_boost": PrefixBoostWeighting(scheme="prefix_boost"),
    }
    if isinstance(chosen, CustomWeighting):
        listed[chosen.path] = chosen
    return {name: weighting(config) for name, config in listed.items()}


def _annealed(config: AnnealedPrefixWeighting) -> Callable[[float], float]:
    from iwopd.numerics.weighting import annealed_fraction

    return lambda progress: annealed_fraction(config.start, config.end, progress, config.anneal)  # pyright: ignore


def _tried(weighting: "Weighting") -> "Weighting":
    """A user's scheme, after it has weighed two short responses: its mistakes show now, not after the first rollout."""
    import torch

    from iwopd.numerics import WeightInput

    mask = torch.tensor([[True, True, True], [True, True, False]])
    values = torch.full(mask.shape, -0.5) * mask
    given = WeightInput(values, mask, torch.arange(3).expand(2, 3), mask.sum(-1), values, 0.0, [0, 1])
    weighting.checked(given)
    return weighting


def _guarded(path: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function; what it raises is one line."""
    import torch

    def call(given: Any) -> Any:
        try:
            return function(given)
        except torch.OutOfMemoryError:
            raise
        except (Exception, SystemExit) as error:  # it may raise anything
            raise ConfigError(f"weighting.path={path}: raised {type(error).__name__}: {error}; mend it") from error

    return call


def _imported(path: str) -> Callable[..., Any]:
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
