"""One vLLM server, and which model it says it serves."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(eq=False)
class Server:
    """One server and what is under way there.

    Attributes:
        model: the name it serves its model under.
        root: the folder or hub name that it loaded the model from; "" where it does not say.
        context: longest prompt and response together, tokens.
        outstanding: tokens asked for and not yet answered.
        failures: in a row; 0 after an answer.
    """

    url: str
    model: str = ""
    root: str = ""
    context: int = 0
    outstanding: int = 0
    failures: int = 0
    alive: bool = True

    def serves(self, path: str) -> bool:
        """True where it says that it serves the model of `path`, a folder or a hub name."""
        return any(name and _same_model(name, path) for name in (self.root, self.model))


def _same_model(name: str, path: str) -> bool:
    if name == path or _hub_name(name) == path:
        return True
    return Path(name).exists() and Path(name).resolve() == Path(path).resolve()


def _hub_name(name: str) -> str:
    """The hub name of a folder in the hub's cache (…/models--OWNER--NAME/snapshots/…); other names as they are."""
    cached = next((part for part in Path(name).parts if part.startswith("models--")), "")
    return cached.removeprefix("models--").replace("--", "/") if cached else name
