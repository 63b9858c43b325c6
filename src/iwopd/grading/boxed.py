r"""The answer of a response: what stands in its last `\boxed{…}`."""

import re

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
BARE = re.compile(r"[^\s{}$\\.,;]+(?:[.,]\d+)*")


def last_boxed(text: str) -> str | None:
    r"""The contents of the last `\boxed{…}`, braces matched; None where there is none.

    The last box counts, whatever stands in earlier ones: it is what the writer ended with. A box that is never closed,
    as in a response cut by its length, holds no finished answer, so there is none. Of boxes within a box the outer one
    counts. `\boxed 5`, without braces, is read as TeX's habit allows.
    """
    place, found = 0, None
    while (match := BOX.search(text, place)) is not None:
        start = match.end()
        if start < len(text) and text[start] == "{":
            stop = _closing(text, start)
            found = None if stop is None else text[start + 1 : stop]
            # Behind a box that is never closed others may follow: it was only spoken of.
            place = start if stop is None else stop
        else:
            bare = BARE.match(text, start)
            found = bare.group() if bare and match.group()[-1].isspace() else None
            place = start
    return found


def _closing(text: str, start: int) -> int | None:
    depth, place = 0, start
    while place < len(text):
        if text[place] == "\\":
            place += 1  # an escaped brace is a character like any other
        elif text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return place
        place += 1
    return None
