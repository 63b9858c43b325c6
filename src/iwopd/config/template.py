"""Texts with places for the columns of a row: `teacher.prompt_template`."""

import re
from collections.abc import Callable

# {{…}} stands for {…} as it is; {} and braces around anything but a name, of which LaTeX is full, are left alone.
PLACE = re.compile(r"\{\{([^{}]*)\}\}|\{([^\W\d][^{}]*)\}")
PROMPT = "prompt"  # what the student is asked, whatever its column is called


def places(template: str) -> list[str]:
    """The names of the columns it has a place for, `PROMPT` among them; each once."""
    return list(dict.fromkeys(found[2] for found in PLACE.finditer(template) if found[2] is not None))


def columns(template: str | None) -> list[str]:
    """Those that must be in a row."""
    return [name for name in places(template or "") if name != PROMPT]


def fill(template: str, value: Callable[[str], str]) -> str:
    """With the text of each column in its place."""
    return PLACE.sub(lambda found: f"{{{found[1]}}}" if found[2] is None else value(found[2]), template)
