"""The schemes that are compared on the same tokens."""

from collections.abc import Mapping

from iwopd.types import SAMPLED, Signal
from iwopd.weighting import SCHEMES, Weighting


def compared_schemes(chosen: Weighting, signal: Signal = SAMPLED) -> Mapping[str, Weighting]:
    """Every scheme at its presets' settings, by preset name, and the one chosen as it is; those that need distributions
    only where the signal says enough of them."""
    listed = {name: made for kind in SCHEMES.values() for name, made in kind.presets().items()}
    every = {**listed, chosen.name: chosen}
    return {name: made for name, made in every.items() if not made.measures or _says_enough(signal, made)}


def _says_enough(signal: Signal, scheme: Weighting) -> bool:
    return signal.kind == "full" or signal.k >= scheme.needed_top_k
