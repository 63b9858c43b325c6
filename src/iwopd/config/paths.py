"""Home folders in paths: every setting marked `path=True` may start with ~ or ~USER, and is expanded here alone."""

import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from iwopd.setting import is_section

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def expand(section: "DataclassInstance", prefix: str = "") -> Iterator[str]:
    """Put home folders in place of ~ throughout a config; a line for each that is not known.

    Relative paths stay relative to the folder the program was started in.
    """
    for entry in dataclasses.fields(section):
        value, key = getattr(section, entry.name), prefix + entry.name
        if is_section(value):
            yield from expand(value, key + ".")
        elif isinstance(value, dict):
            yield from _expand_items(value, key, entry.metadata.get("path", False))  # pyright: ignore
        elif isinstance(value, list) and entry.metadata.get("path"):
            found = list[str]()
            for index, item in enumerate(value):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
                found.append((yield from _expanded(str(item), f"{key}[{index}]")))  # pyright: ignore
            setattr(section, entry.name, found)
        elif isinstance(value, str) and entry.metadata.get("path"):
            setattr(section, entry.name, (yield from _expanded(value, key)))


def _expand_items(items: dict[str, Any], key: str, paths: bool) -> Iterator[str]:
    for name, item in items.items():
        if is_section(item):
            yield from expand(item, f"{key}.{name}.")
        elif paths and isinstance(item, str):
            items[name] = yield from _expanded(item, f"{key}.{name}")


def _expanded(value: str, key: str) -> Iterator[str]:
    found = os.path.expanduser(value)
    if found.startswith("~"):
        user = value[1:].partition("/")[0]
        reason = f"there is no user {user} here" if user else "this user has no home folder"
        yield f"{key}={value}: {reason}; write the folder out, or ./{value} for one of that name"
    return found
