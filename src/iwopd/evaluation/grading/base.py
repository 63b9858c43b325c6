"""What a grader is: from a response and its problem to a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import regex

from iwopd.types import Prompt


@dataclass(frozen=True, slots=True)
class Verdict:
    """What grading found.

    Attributes:
        correct: the response's answer is right.
        answer: what was taken for its answer; None where there was none.
        timed_out: grading was given up, so it counts as wrong.
    """

    correct: bool
    answer: str | None = None
    timed_out: bool = False


class Grader(Protocol):
    """Grades responses; call it with many at once, for some graders share processes among them."""

    def __call__(self, responses: Sequence[tuple[str, Prompt]]) -> list[Verdict]:
        """A verdict on each (text, the problem it answers), in order."""
        ...

    def close(self) -> None:
        """End what grading started; the next call starts it again."""


class ExactGrader(Grader):
    """Right when the answer equals the reference, white space at the ends aside.

    Args:
        pattern: regular expression whose first group (or whole match) is the answer; its last match counts. None takes
            the whole response.
        seconds: for one response; some patterns take forever with what a model writes.

    Raises:
        ValueError: the pattern is not a regular expression.
    """

    def __init__(self, pattern: str | None = None, seconds: float = 5.0):
        self._seconds = seconds
        try:
            self._pattern = None if pattern is None else regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"not a regular expression: {error}") from None

    def __call__(self, responses: Sequence[tuple[str, Prompt]]) -> list[Verdict]:
        """See `Grader`."""
        return [self._grade(text, prompt) for text, prompt in responses]

    def _grade(self, text: str, prompt: Prompt) -> Verdict:
        assert prompt.answer is not None, "benchmarks have answers: checked when their rows were read"
        try:
            answer = self.extract(text)
        except TimeoutError:
            return Verdict(correct=False, timed_out=True)
        return Verdict(answer is not None and answer == prompt.answer.strip(), answer)

    def extract(self, text: str) -> str | None:
        """The answer in a response.

        Raises:
            TimeoutError: it takes too long to find.
        """
        if self._pattern is None:
            return text.strip()
        found = [
            match.group(self._pattern.groups and 1) for match in self._pattern.finditer(text, timeout=self._seconds)
        ]
        return (found[-1] or "").strip() if found else None
