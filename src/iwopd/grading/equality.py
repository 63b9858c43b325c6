"""Single expressions by math-verify. Only `worker` imports this: sympy may hang, crash or fill the memory."""

import logging
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

DIGITS = 9  # decimals to which a floating-point value must agree with an exact one

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
