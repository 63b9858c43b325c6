"""A config as a run keeps and shows it: plain values, and what comes from the environment as it was written."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf

from iwopd.redact import HIDDEN, environment_secrets, is_secret

if TYPE_CHECKING:
    from iwopd.config import Config

Node = TypeVar("Node")
SCHEMA = 3  # of config.yaml and of checkpoints; counted up when a run of before can no longer be resumed

ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:")


def stored(config: "Config", verb: str) -> dict[str, Any]:
    """Plain values of `config` for the files of a run and for trackers, with `schema` and `verb` before them.

    Settings that took a value from the environment (``${oc.env:NAME}``) are kept as they were written, and so are
    texts that hold the value of a secret of the environment; what is named as a secret and was typed is left out. Of
    the first, `environment` has digests, so that another value is noticed when the run is resumed.
    """
    plain = asdict(config)
    del plain["interpolations"]
    digests = dict[str, str]()
    for key, text in config.interpolations.items():
        *owners, name = key.split(".")
        node: Any = plain
        for owner in owners:
            node = node[int(owner) if isinstance(node, list) else owner]
        place: Any = int(name) if isinstance(node, list) else name
        digests[key] = _digest(key, node[place])  # pyright: ignore[reportUnknownArgumentType]
        node[place] = text
    found = {"schema": SCHEMA, "verb": verb, **_without_secrets(plain, environment_secrets())}
    return found | ({"environment": digests} if digests else {})


def _digest(key: str, value: object) -> str:
    """Slow to compute, so that what it was made of cannot be guessed in a reasonable time."""
    return hashlib.scrypt(repr(value).encode(), salt=f"iwopd {key}".encode(), n=2**14, r=8, p=1, dklen=12).hex()


def _without_secrets(node: Node, secrets: Mapping[str, str]) -> Node:
    if isinstance(node, dict):
        kept: dict[Any, Any] = {
            key: HIDDEN if is_secret(key, value) else _without_secrets(value, secrets)  # pyright: ignore
            for key, value in node.items()  # pyright: ignore
        }
        return cast(Node, kept)
    if isinstance(node, list):
        return cast(Node, [_without_secrets(value, secrets) for value in node])  # pyright: ignore
    if isinstance(node, str) and not ENVIRONMENT.search(node):
        text: str = node
        for name, value in secrets.items():
            text = text.replace(value, f"${{oc.env:{name}}}")
        return cast(Node, text)
    return node


def interpolations(composed: DictConfig) -> dict[str, str]:
    """Settings that take something from the environment, directly or through others, as they are written; by dotted
    keys. `composed` is not resolved yet."""
    written = dict(leaves(OmegaConf.to_container(composed, resolve=False)))
    found = {key: text for key, text in written.items() if isinstance(text, str) and ENVIRONMENT.search(text)}
    values = [str(value) for key in found for _, value in leaves(_value(composed, key)) if value not in (None, "")]
    for key, text in written.items():
        if isinstance(text, str) and "${" in text and key not in found:
            resolved = [str(value) for _, value in leaves(_value(composed, key))]
            if any(value in each for value in values for each in resolved):
                found[key] = text
    return found


def _value(composed: DictConfig, key: str) -> object:
    value = OmegaConf.select(composed, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values of nested dictionaries and lists; an empty one is a value."""
    if isinstance(node, Mapping) and node:
        items: Any = node.items()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    elif isinstance(node, list) and node:
        items = enumerate(node)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    else:
        yield prefix, node
        return
    for key, value in items:
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
