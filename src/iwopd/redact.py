"""What may leave the program: text without secrets, and without what a terminal or a page would take for commands.

`clean` is applied before every outlet: console and train.log, error messages and tracebacks, the log records of all
libraries (vllm.log among them), about.json, trackers, model cards and reports.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import TypeVar, cast

Node = TypeVar("Node")
HIDDEN = "…"
SHORTEST = 6  # characters of an environment variable's value that is taken for a secret

# A setting or an environment variable that holds a secret: HF_TOKEN, hf_token, VLLM_API_KEY, DB_PASSWORD, …
SECRET_NAME = re.compile(
    r"(^|[_.\-])(token|secret|password|passwd|passphrase|pass|pwd|credentials?|api_?key|key|authorization)([_.\-]|$)",
    re.IGNORECASE,
)
# User and password in an address; hf://datasets/USER/NAME@REVISION has none.
USERINFO = re.compile(r"\b(?!hf://)([a-z][a-z0-9+.\-]*://)[^\s'\"<>]*@", re.IGNORECASE)
QUERY = re.compile(
    r"([?&](?:[\w\-]*(?:token|key|secret|password|signature|credential)|sig)=)[^&\s'\"\]},]+", re.IGNORECASE
)
NAMED = re.compile(
    r"((?:api[_-]?key|hf[_-]?token|access[_-]?(?:token|key)|auth[_-]?token|secret|password|passwd)['\"]?\s*[=:]\s*['\"]?)"
    r"[^\s'\",&{}\[\]]+",
    re.IGNORECASE,
)
# As services make them: Hugging Face, OpenAI and the like, GitHub, AWS; and what follows `Bearer`.
SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w\-]{16,}|\bgh[pousr]_\w{20,}|\bAKIA[0-9A-Z]{16}\b|(?<=Bearer )[\w.\-~+/=]{8,}"
)
# Control characters but for tab and line feed, and those that turn the direction of text or break lines elsewhere.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def environment_secrets() -> dict[str, str]:
    """Values of environment variables that hold secrets, by the variables' names."""
    return {
        name: value
        for name, value in os.environ.items()
        if names_secret(name) and len(value) >= SHORTEST and not value.isdigit() and value[0] not in "/~"
    }


def is_secret(name: object, value: object) -> bool:
    """True for a text whose name says that it is a secret, unless it only says where that is (``${oc.env:NAME}``)."""
    return isinstance(value, str) and "${" not in value and names_secret(str(name))


@lru_cache(4096)  # of the environment's variables it is asked for every line that is logged
def names_secret(name: str) -> bool:
    """True for the name of a setting or of an environment variable that holds a secret."""
    return SECRET_NAME.search(name) is not None


def redact(text: str) -> str:
    """`text` without the values of secrets."""
    for value in sorted(environment_secrets().values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = USERINFO.sub(rf"\1{HIDDEN}@", text)
    return SHAPES.sub(HIDDEN, NAMED.sub(rf"\1{HIDDEN}", QUERY.sub(rf"\1{HIDDEN}", text)))


def printable(text: str) -> str:
    r"""`text` with control characters as they are written in Python, e.g. ``\x1b``; tabs and line feeds stay."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def clean(text: str) -> str:
    """`text` as it may be shown to people and kept in files."""
    return printable(redact(text))


def cleaned(node: Node) -> Node:
    """Plain values with every text in them `clean`, and none below a name that says it is a secret."""
    if isinstance(node, Mapping):
        kept = {key: HIDDEN if is_secret(key, value) else cleaned(value) for key, value in node.items()}
        return cast(Node, kept)
    if isinstance(node, (list, tuple)):
        return cast(Node, [cleaned(item) for item in node])
    return cast(Node, clean(node)) if isinstance(node, str) else node


def install() -> None:
    """From now on, log records of all libraries and tracebacks of this process are clean."""
    make = logging.getLogRecordFactory()
    if not getattr(make, "cleans", False):

        def made(*arguments: object, **named: object) -> logging.LogRecord:
            record = make(*arguments, **named)
            try:
                record.msg, record.args = clean(record.getMessage()), None
            except Exception:  # a wrong format is the handler's to tell
                record.msg = clean(str(record.msg))
            return record

        made.cleans = True  # pyright: ignore[reportFunctionMemberAccess]
        logging.setLogRecordFactory(made)
    sys.excepthook = _print_traceback


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(clean("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
