"""Schemes and losses by the name in their section: set by key as well as by group, and refused where there is none."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING

from iwopd.losses import LOSSES
from iwopd.setting import of_its_name
from iwopd.weighting import SCHEMES

if TYPE_CHECKING:
    from iwopd.config import Config


def settle(config: "Config") -> Iterator[str]:
    """Make `weighting` and `loss` the classes that their names say; a line for each that cannot be."""
    weighting, loss = of_its_name(config.weighting, SCHEMES), of_its_name(config.loss, LOSSES)
    if weighting is None:
        own = next((name for name, kind in SCHEMES.items() if type(config.weighting) is kind), "nothing")
        yield (
            f"weighting.scheme={config.weighting.scheme}: this schema computes {own}; "
            "choose another scheme by its preset, weighting=NAME"
        )
    if loss is None:
        near = get_close_matches(config.loss.kind, LOSSES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        yield f"loss.kind={config.loss.kind}: not a choice; {hint}choose one with loss=NAME: {', '.join(LOSSES)}"
    config.weighting, config.loss = weighting or config.weighting, loss or config.loss
