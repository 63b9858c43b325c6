"""One line for an error of Hydra or OmegaConf: key, value, reason, fix."""

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches

from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from iwopd.config.presets import config_folder, groups, presets_with
from iwopd.errors import first_line
from iwopd.launch.overrides import grammar_advice, wrong

SEVERAL = ("benchmark", "tracking")  # groups of which several can be chosen at once


def explain(error: Exception, overrides: Sequence[str], prefix: str = "") -> str:
    """One line for an error of Hydra or OmegaConf: key, value, reason, fix.

    Args:
        prefix: of the node that the error's keys are relative to.
    """
    missing = str(error.missing_cfg_file or "") if isinstance(error, MissingConfigException) else ""
    if missing:
        group, _, name = missing.rpartition("/")
        # Of a group with several choices, such as benchmark=[…], Hydra does not say what there is.
        there = getattr(error, "options", None) or [
            file.stem for file in sorted((config_folder() / group).glob("*.yaml"))
        ]
        options = [option for option in there if not option.startswith("schema")]
        near = get_close_matches(name, options, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{group}={name}: no such preset; {hint}choose one of {', '.join(options)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = prefix + str(getattr(cause, "full_key", None) or "")
    given = next((override for override in overrides if override.lstrip("+~").split("=")[0] == key), "")
    shown = given.lstrip("+~") or key
    if key == "eval.benchmarks":
        return f"{shown}: benchmarks are chosen by name; write benchmark=[NAME,…], or benchmark=[] for none"
    chosen = re.match(r"eval\.benchmarks\.([^.]+)", key)
    if chosen:
        return f"{shown}: no benchmark of that name is chosen; add benchmark=[{chosen[1]}]"
    if isinstance(cause, (ConfigKeyError, AttributeError)) and key:
        return f"{shown}: no such key; {known_keys(key, getattr(cause, 'object_type', None))}"
    reason = first_line(cause)
    if "OverrideParseException" in type(error).__name__:
        shown = wrong(error, overrides)
        return f"{shown}: not Hydra's grammar; {grammar_advice(shown)}"
    group = re.search(r"Could not override '([^'@]+)'\. No match in the defaults list", str(error))
    if group:
        shown = next((override for override in overrides if override.startswith(group[1])), group[1])
        add = f"write +{shown}" if group[1] in groups() else f"the groups are {', '.join(groups())}"
        return f"{shown}: nothing to override in the defaults; {add}"
    wanted = re.search(r"could not be converted to (\w+)", reason)
    if wanted:
        kinds = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false"}
        kind = kinds.get(wanted[1], wanted[1])
        return f"{shown}: not {kind}; give it one"
    if "is not a ListConfig" in reason:
        return f"{shown}: not a list; write {key}=[…]"
    fix = "correct it, or see --help for what there is"
    if "Ambiguous value" in reason:
        fix = _several_advice(wrong(error, overrides))
    return f"{shown or wrong(error, overrides)}: {reason}; {fix}"


def _several_advice(item: str) -> str:
    """What to do about KEY=VALUE,VALUE."""
    name, _, values = item.partition("=")
    return "add -m to sweep over values" + (f", or write {name}=[{values}] for all at once" if name in SEVERAL else "")


def known_keys(key: str, owner: object) -> str:
    known = [entry.name for entry in fields(owner)] if is_dataclass(owner) else []
    parent, _, name = key.rpartition(".")
    if not parent:
        known = sorted({*known, *groups()})
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {f'{parent}.' if parent else ''}{near[0]}? " if near else ""
    elsewhere = [] if near else [f"{parent}={choice}" for choice in presets_with(parent, name)]
    if elsewhere:
        return f"choose {' or '.join(elsewhere)}, which has it"
    return f"{hint}{f'{parent} has' if parent else 'there are'} {', '.join(known)}" if known else "see --help"
