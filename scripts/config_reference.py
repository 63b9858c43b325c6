"""The configuration reference, in Markdown, from the texts and bounds of the schemas in `iwopd.config`.

python scripts/config_reference.py     # prints it; `make docs` puts it on the page docs/configuration.md
"""

import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from iwopd.config import ENTRIES, SCHEMAS, Config
from iwopd.launch import config_folder

KINDS = {bool: "true, false", int: "whole number", float: "number", str: "text", list: "list", dict: "section"}


def reference() -> str:
    """Every section's heading, meaning and table of fields."""
    return "\n".join(section(Config, None, "", set()))


def section(schema: type, given: Any, prefix: str, known: set[str]) -> Iterator[str]:
    """A table of the schema's own fields (less `known` ones), then the sections below it.

    Args:
        given: the section that another one makes by default; None for the schema's own defaults.
    """
    hints = get_type_hints(schema)
    own = [(entry, hints[entry.name], default(entry, given)) for entry in fields(schema) if entry.name not in known]
    described = [item for item in own if "text" in item[0].metadata]
    rows = [row(prefix + entry.name, entry.metadata, hint, value) for entry, hint, value in described]
    if rows:
        yield from ("", "| field | default | values | meaning |", "|---|---|---|---|", *rows)
    for entry, hint, value in own:
        key = prefix + entry.name
        entries = entry_schema(key, hint)
        if is_dataclass(hint):
            yield from headed(f"`{key}`", hint, value if is_dataclass(value) else None, f"{key}.")
            yield from choices(key, hint)
        elif entries is not None:
            yield from headed(f"`{key}.NAME`", entries, None, f"{key}.NAME.")


def choices(group: str, base: Any) -> Iterator[str]:
    """The schemas of a group that one is chosen from: what each has beyond the base."""
    known = {entry.name for entry in fields(base)}
    for name, schema in SCHEMAS.get(f"schema/{group}", {}).items():
        if schema is not base:
            presets = ", ".join(f"`{group}={preset}`" for preset in presets_of(group, name))
            yield from headed(f"`{group}`: {name}", schema, None, f"{group}.", known, f"Presets: {presets}.")


def headed(
    title: str, schema: Any, given: Any, prefix: str, known: Iterable[str] = (), note: str = ""
) -> Iterator[str]:
    """A section with its heading and what its schema says of itself."""
    level = "##" if prefix.count(".") == 1 and not known else "###"
    yield from ("", f"{level} {title}", "", f"{' '.join((schema.__doc__ or '').split())} {note}".strip())
    yield from section(schema, given, prefix, set(known))


def presets_of(group: str, schema: str) -> list[str]:
    """The presets of a group that fill a schema."""
    named = re.compile(rf"/schema/{group}/{schema}@")
    return sorted(
        file.stem for file in config_folder().glob(f"{group}/*.yaml") if named.search(file.read_text("utf-8"))
    )


def entry_schema(key: str, hint: Any) -> type | None:
    """The schema of a dictionary's entries, where they have one."""
    arguments = get_args(hint)
    typed = arguments[1] if get_origin(hint) is dict and is_dataclass(arguments[1]) else None
    return ENTRIES.get(key, typed)  # pyright: ignore


def row(key: str, about: Mapping[str, Any], hint: Any, value: Any) -> str:
    """A field: key, default, values, meaning."""
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)  # as in YAML
    cells = (f"`{key}`", f"`{shown}`", values(about, hint), about["text"].replace("<", "&lt;"))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def default(entry: Field[Any], given: Any) -> Any:
    """What the field has where nothing sets it."""
    if given is not None:
        return getattr(given, entry.name)
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default


def values(about: Mapping[str, Any], hint: Any) -> str:
    """What a field may be set to."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kind = next(each for each in kinds if each is not type(None))
    if about["choices"]:
        found = ", ".join(f"`{choice}`" for choice in about["choices"])
    else:
        found = ", ".join([KINDS.get(get_origin(kind) or kind, "any"), *bounds(about)])
    return found + (", null" if type(None) in kinds else "")


def bounds(about: Mapping[str, Any]) -> Iterator[str]:
    """The limits of a number."""
    for word, key in (("≥", "low"), (">", "above"), ("≤", "high")):
        if about[key] is not None:
            yield f"{word} {about[key]}"


if __name__ == "__main__":
    print(reference())
