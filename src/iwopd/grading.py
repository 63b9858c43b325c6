"""Is a response right? A grader is a function of the response's text and the reference answer."""

import re
from collections.abc import Callable

Grader = Callable[[str, str], bool]


def exact_grader(pattern: str | None = None) -> Grader:
    """Right when the answer equals the reference, white space at the ends aside.

    Args:
        pattern: regular expression whose first group (or whole match) is the answer; its last match counts. None takes
            the whole response.

    Raises:
        ValueError: the pattern is not a regular expression.
    """
    try:
        compiled = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None

    def grade(response: str, answer: str) -> bool:
        if compiled is None:
            return response.strip() == answer.strip()
        found = [match.group(compiled.groups and 1) for match in compiled.finditer(response)]
        return bool(found) and (found[-1] or "").strip() == answer.strip()

    return grade
