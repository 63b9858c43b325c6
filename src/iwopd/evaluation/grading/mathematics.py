r"""Mathematical answers: the last `\boxed{…}` against the reference."""

from collections.abc import Sequence

from iwopd.evaluation.grading.base import Grader, Verdict
from iwopd.evaluation.grading.boxed import last_boxed
from iwopd.evaluation.grading.comparing import READ, compare, readable
from iwopd.evaluation.grading.pool import Pool
from iwopd.types import Prompt

Pair = tuple[str, str]
MEMORY = 2 * 2**30  # bytes of address space for each process that compares
SHORT = 200  # characters of an answer that is looked at here: of a longer one, some writing takes seconds to tell from


class _Undecided(Exception):
    """The writing alone does not tell."""


class MathGrader(Grader):
    r"""Right when the last `\boxed{…}` of a response is worth the same as the reference.

    Most answers are settled here and at once; the long ones, and those that need math-verify, in processes with limits
    of time and memory. One that needs more is wrong.

    Args:
        seconds: time for one comparison.
    """

    def __init__(self, seconds: float = 5.0):
        arguments = [str(seconds), str(MEMORY)]
        self._pool = Pool("grader=math", "iwopd.evaluation.grading.worker", arguments, seconds, {"verdict": bool})
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
                self._known[pair] = _compared(*pair)
            except Exception:  # also what strange writing does to us; a process with limits finds out
                left.append(pair)
        found = self._pool.ask([{"answer": answer, "reference": reference} for answer, reference in left])
        for pair, line in zip(left, found, strict=True):
            self._known[pair] = None if line is None else bool(line["verdict"])

    def _verdict(self, pair: Pair | None) -> Verdict:
        if pair is None:
            return Verdict(False)
        found = self._known[pair]
        return Verdict(bool(found), pair[0], timed_out=found is None)

    def unreadable(self, references: Sequence[str]) -> list[int]:
        """Which references mean nothing to it, so that only an answer spelled the same could be right; their places."""
        known = list(map(_readable, references))
        left = [place for place, settled in enumerate(known) if settled is None]
        found = self._pool.ask([{"reference": bare(references[place])} for place in left])
        return [place for place, line in zip(left, found, strict=True) if not (line and line["verdict"])]

    def close(self) -> None:
        """See `Grader`."""
        self._pool.close()


def bare(reference: str) -> str:
    """A reference without the box that some datasets put it in."""
    return (last_boxed(reference) or reference).strip()


def _readable(reference: str) -> bool | None:
    """True where its notation alone shows that it can be compared."""
    try:
        return readable(bare(reference), _undecided) or None
    except _Undecided:
        return None


def _compared(answer: str, reference: str) -> bool:
    if SHORT < len(answer) <= READ:
        raise _Undecided
    return compare(answer, reference, _undecided)


def _undecided(*expressions: str) -> bool:
    raise _Undecided
