r"""The answer of a response: the content of its last `\boxed{…}`."""

import re

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*+")
BARE = re.compile(r"[^\s{}$\\.,;]++(?:[.,]\d++)*+")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a character like any other


def last_boxed(text: str) -> str | None:
    r"""The contents of the last `\boxed{…}`, braces matched; None where there is none.

    The last box counts, whatever earlier ones hold: it is what the writer ended with. A box that is never closed,
    as in a response cut by its length, holds no finished answer, so there is none. Of boxes within a box the outer one
    counts. `\boxed 5`, without braces, is read as TeX's habit allows.

    In time linear in the text's length: responses are long, and some repeat `\boxed{` until they are cut.
    """
    place, found, closing = 0, None, None
    while (match := BOX.search(text, place)) is not None:
        start = match.end()
        if start < len(text) and text[start] == "{":
            closing = _pairs(text) if closing is None else closing
            stop = closing.get(start)
            found = None if stop is None else text[start + 1 : stop]
            # After a box that is never closed others may follow: it was only mentioned.
            place = start if stop is None else stop
        else:
            bare = BARE.match(text, start)
            found = bare.group() if bare and match.group()[-1].isspace() else None
            place = start
    return found


def _pairs(text: str) -> dict[int, int]:
    """Where each brace that is closed is closed."""
    opened, closing = list[int](), dict[int, int]()
    for match in BRACE.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing
