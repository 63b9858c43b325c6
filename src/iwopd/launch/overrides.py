"""Overrides in Hydra's grammar: which of a command line is wrong, and how a shell is given what was meant."""

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from iwopd.ablate.arms import override


def home_quoted(argument: str) -> str:
    """``KEY=~/x`` with its value in quotes: Hydra's grammar has no value that starts with ~, but shells leave it so."""
    key, _, value = argument.partition("=")
    return override(key, value) if value.startswith("~") and not key.startswith("-") else argument


def with_runs(flags: Sequence[str], given: Sequence[str]) -> list[str]:
    """The command line of `iwopd report`, whose folders become its setting: all that is no KEY=VALUE, and what is a
    folder although it looks like one."""
    runs = [each for each in given if "=" not in each or Path(each).is_dir()]
    named = [override("report.runs", runs)] if runs else []
    return [*flags, *(each for each in given if each not in runs), *named]


def wrong(error: Exception, overrides: Sequence[str]) -> str:
    """The override that an error of Hydra is about; all of them, as typed in a shell, where it does not say."""
    given = [item for item in overrides if not item.startswith("-")]
    unparsable = next((item for item in given if not _parses(item)), None)
    said = str(error)
    by_text = sorted((item for item in given if item in said), key=len)
    by_key = [item for item in given if key(item) and re.search(rf"(?<![\w.]){re.escape(key(item))}(?![\w.])", said)]
    found = [*([unparsable] if unparsable is not None else []), *by_text[::-1], *by_key]
    return (found or given)[0] if found or len(given) == 1 else shlex.join(given)


def key(item: str) -> str:
    """What an override is about, without its prefix and package."""
    return item.partition("=")[0].lstrip("+~").partition("@")[0]


def grammar_advice(item: str) -> str:
    """What to do about an override that is not in Hydra's grammar; what it says to type can be pasted into a shell."""
    name, equals, value = item.partition("=")
    if not equals:
        return "write KEY=VALUE or GROUP=NAME, see --help"
    if not name or not _parses(f"{name}=1"):
        return "the part before = is no key; see --help for the keys"
    escaped = value.replace("${", "\\${")
    ways = [f'{name}="{text}"' for text in (value, value.replace('"', '\\"'))] + [
        override(name, text) for text in (value, escaped)
    ]
    for written in ways:
        if _means(written, value):
            return f"see --help, or quote the value for it: {shlex.quote(written)}"
    return "see --help"


def _parses(item: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(item).key_or_group)
    except Exception:  # HydraException, and what its parser lets through
        return False


def _means(item: str, text: str) -> bool:
    """True where an override sets its key to just this text, or to what its interpolation makes of it."""
    with suppress(Exception):
        value = OverridesParser.create().parse_override(item).value()
        node = OmegaConf.create({"value": value})
        plain = OmegaConf.is_interpolation(node, "value") or node["value"] == text
        return isinstance(value, str) and plain and (value == text or node["value"] == text)
    return False
