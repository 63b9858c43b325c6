r"""Mathematical answers: the last `\boxed{…}` against the reference."""

from collections.abc import Sequence

from iwopd.grading.base import Grader, Verdict
from iwopd.grading.boxed import last_boxed
from iwopd.grading.comparing import compare
from iwopd.grading.pool import Pool
from iwopd.types import Prompt

Pair = tuple[str, str]


class _Undecided(Exception):
    """The writing alone does not tell."""


class MathGrader(Grader):
    r"""Right when the last `\boxed{…}` of a response is worth the same as the reference.

    Most answers are settled here and at once; the others go to math-verify, in processes with limits of time and
    memory. One that needs more is wrong.

    Args:
        seconds: time for one comparison.
    """

    def __init__(self, seconds: float = 5.0):
        self._pool = Pool(seconds)
        self._known: dict[Pair, bool | None] = {}

    def __call__(self, responses: Sequence[tuple[str, Prompt]]) -> list[Verdict]:
        """See `Grader`."""
        pairs: list[Pair | None] = []
        for text, prompt in responses:
            assert prompt.answer is not None, "benchmarks have answers: checked when their rows were read"
            answer = last_boxed(text)
            pairs.append(None if answer is None else (answer.strip(), bare(prompt.answer)))
        self._settle({pair: None for pair in pairs if pair is not None and pair not in self._known})
        return [self._verdict(pair) for pair in pairs]

    def _settle(self, pairs: dict[Pair, None]) -> None:
        """Into `_known`; of equal pairs, as samples of one problem often give, one is worked out."""
        left: list[Pair] = []
        for pair in pairs:
            try:
                self._known[pair] = compare(*pair, _undecided)
            except _Undecided:
                left.append(pair)
        verdicts = self._pool.ask([{"answer": answer, "reference": reference} for answer, reference in left])
        self._known.update(zip(left, verdicts, strict=True))

    def _verdict(self, pair: Pair | None) -> Verdict:
        if pair is None:
            return Verdict(False)
        found = self._known[pair]
        return Verdict(bool(found), pair[0], timed_out=found is None)

    def unreadable(self, references: Sequence[str]) -> list[int]:
        """Which references mean nothing to it, so that only an answer spelled the same could be right; their places."""
        found = self._pool.ask([{"reference": bare(reference)} for reference in references])
        return [place for place, readable in enumerate(found) if not readable]

    def close(self) -> None:
        """See `Grader`."""
        self._pool.close()


def bare(reference: str) -> str:
    """A reference without the box that some datasets put it in."""
    return (last_boxed(reference) or reference).strip()


def _undecided(answer: str, reference: str) -> bool:
    raise _Undecided
