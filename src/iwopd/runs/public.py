"""What a model card, which is meant to be published, shows of a run: settings by a list of their names, and no paths,
addresses or markup within their values."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iwopd.redact import clean

HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
PATH = re.compile(r"""(?<![\w:/.~-])(?:~|\.{1,2})?/?(?:[^\s,=:/\[\]{}'"]+/)+(?P<last>[^\s,=:/\[\]{}'"]+)/?""")
ADDRESS = re.compile(r"""https?://[^\s,\]}'"]+""")

# Settings that may be shown. All others may name machines, people or keys, and say nothing of what was computed.
PUBLIC = re.compile(
    r"""seed|run\.(steps|tokens|deterministic)
    |(student|teacher|teachers\.[^.]+|base)\.(path|name|revision|dtype|attention|compile|trust_remote_code)
    |student\.(gradient_checkpointing|lora\.(rank|alpha|dropout|targets))
    |data\.(batch_size|max_prompt_tokens|overlong)
    |(data|data\.sources\.[^.]+|eval\.benchmarks\.[^.]+)\.(path|subset|split|revision|filter|limit|template|suffix|system
        |enable_thinking|weight|teacher|grader|(prompt|answer|id|teacher)_column)
    |rollout\.(max_tokens|temperature|top_p|top_k|n|share_prompts|horizon|horizon_end|horizon_power|stop_early|stop_every|stop_keep|batch_size|dtype)
    |scoring\.(student_logprobs|batch_tokens)
    |(weighting|loss|optim)\.[a-z_]+
    |eval\.(every|k|n|temperature|top_p|top_k|max_tokens|greedy|sandbox|grading_timeout_s|code_timeout_s|code_memory_gib)
    """,
    re.VERBOSE,
)
# A preset on the command line: its group, and its name or several.
PRESET = re.compile(
    r"(experiment|student|teacher|data|rollout|scoring|weighting|loss|optim|eval|benchmark)=[\w.,\[\]-]+"
)
HIDDEN: Any = object()  # takes the place of what is not public


def hub_name(path: str) -> str | None:
    """`path` if it names something on the hub; None for what is on this machine."""
    return path if HUB_NAME.fullmatch(path) and not Path(path).exists() else None


def shown(text: str) -> str:
    """`text` with local paths by their last name, and without the addresses of servers."""
    return PATH.sub(_last_name, ADDRESS.sub("http://…", clean(text)))


def _last_name(found: re.Match[str]) -> str:
    path = found.group()
    return found["last"] if path.startswith(("/", "~", ".")) or Path(path).exists() else path


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a config's plain values those that PUBLIC names, each as `shown`."""
    found = _public(config, "")
    return found if isinstance(found, dict) else {}


def _public(node: object, key: str) -> object:
    if isinstance(node, Mapping):
        inner = {name: _public(value, f"{key}.{name}" if key else str(name)) for name, value in node.items()}
        return {name: value for name, value in inner.items() if value is not HIDDEN} or HIDDEN
    if not PUBLIC.fullmatch(key):
        return HIDDEN
    if isinstance(node, list):
        return [shown(item) if isinstance(item, str) else item for item in node]
    return shown(node) if isinstance(node, str) else node


def public_overrides(overrides: list[str]) -> list[str]:
    """Of a command line, presets and what PUBLIC names, each as `shown`."""
    bare = {override: override.lstrip("+~") for override in overrides}
    return [
        shown(override)
        for override, text in bare.items()
        if PUBLIC.fullmatch(text.partition("=")[0]) or PRESET.fullmatch(text)
    ]


def text(said: str) -> str:
    """What a user or a model wrote, within Markdown: no HTML, link, emphasis or end of a table's cell."""
    escaped = html.escape(" ".join(shown(said).split()), quote=False)
    return re.sub(r"([|\[\]*])", r"\\\1", escaped).replace("`", "&#96;")


def code(said: str) -> str:
    """The same as code, which cannot be ended from within."""
    plain = " ".join(shown(said).split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"
