"""How a config field says what it is (default, meaning, unit, allowed values), and how sections are found by name."""

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from omegaconf import MISSING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind", bound="DataclassInstance")
DTYPES = ("float32", "bfloat16")


def setting(
    default: Any = MISSING,  # noqa: ANN401  of the field's type
    text: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    fix: str | None = None,
    path: bool = False,
) -> Any:  # noqa: ANN401  takes the place of the field's default
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


def is_section(value: object) -> "TypeGuard[DataclassInstance]":
    """True for an object of one of the config's classes."""
    return is_dataclass(value) and not isinstance(value, type)


def by_name(*kinds: type[Kind]) -> dict[str, type[Kind]]:
    """A registry of sections' classes, by the name that the first field of each has as its default."""
    return {str(fields(kind)[0].default): kind for kind in kinds}


def of_its_name(section: "DataclassInstance", kinds: Mapping[str, type[Kind]]) -> Kind | None:
    """The section as the class that its first field names, for names set by key (``loss.kind=NAME``), not by group.

    None where `kinds` has no class of that name, or only one with other settings.
    """
    names = [entry.name for entry in fields(section)]
    kind = kinds.get(getattr(section, names[0]))
    if kind is None or [entry.name for entry in fields(kind)] != names:
        return None
    return section if type(section) is kind else kind(**{name: getattr(section, name) for name in names})
