"""How a config field says what it is: its default, meaning, unit and the values it may have."""

from dataclasses import field
from typing import Any

from omegaconf import MISSING

DTYPES = ("float32", "bfloat16")


def setting(
    default: Any = MISSING,
    text: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    fix: str | None = None,
    path: bool = False,
) -> Any:
    """A config field: its default, what it is (with its unit), and the values it may have.

    Args:
        low, high: inclusive bounds.
        above: exclusive lower bound.
        choices: the only values allowed.
        fix: what to do about a wrong value, where the bounds alone do not say it.
        path: it may name a file or folder here, and then start with ~; see `iwopd.config.paths`.
    """
    about = {"text": text, "low": low, "high": high, "above": above, "choices": choices, "fix": fix, "path": path}
    if isinstance(default, (list, dict)):
        kept: Any = default  # pyright: ignore[reportUnknownVariableType]
        return field(default_factory=lambda: kept.copy(), metadata=about)
    return field(default=default, metadata=about)
