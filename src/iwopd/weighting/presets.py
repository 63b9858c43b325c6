"""The schemes that are compared on the same tokens."""

from collections.abc import Mapping

from iwopd.types import SAMPLED, Signal
from iwopd.weighting import SCHEMES, Weighting


def compared_schemes(chosen: Weighting, signal: Signal = SAMPLED) -> Mapping[str, Weighting]:
    """Every scheme at its presets' settings, by preset name, and the one chosen; those that need distributions only
    where the signal has them."""
    listed = {name: made for kind in SCHEMES.values() for name, made in kind.presets().items()}
    every = listed if chosen.name in listed else {**listed, chosen.name: chosen}
    return {name: made for name, made in every.items() if signal.kind != "sampled" or not made.measures}
