"""Single expressions by math-verify. Only `worker` imports this: sympy may hang, crash or fill the memory."""

import logging
from typing import Any

from math_verify import LatexExtractionConfig, grader, parse, verify

from iwopd.evaluation.grading.numeric import numeric_equal

DIGITS = 9  # decimals to which math-verify rounds what `numeric_equal` leaves to it

# It is asked wherever two values meet: alone, in sets, tuples, intervals, matrices and relations.
grader.sympy_numeric_eq = numeric_equal

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def equal(answer: str, reference: str) -> bool:
    """True where math-verify finds them equal; False also where it cannot read one of them."""
    return bool(
        verify(
            _parsed(reference),
            _parsed(answer),
            float_rounding=DIGITS,
            allow_set_relation_comp=True,
            timeout_seconds=None,
        )
    )


def understood(text: str) -> bool:
    """True where math-verify can read an expression."""
    return any(not isinstance(found, str) for found in _parsed(text))


def _parsed(text: str) -> list[Any]:
    # Its own time limits work by signals, which do not reach a call that hangs in C; the pool's limits do.
    return parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)  # pyright: ignore[reportArgumentType]
