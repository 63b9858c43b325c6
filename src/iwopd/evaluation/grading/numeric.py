"""Are two sympy numbers equal? Exactly where both are rational; else to so many of their own digits, however large or
small they are. math-verify's own answer counts decimals after the point, to which 1/2^99 and 1/2^98 are the same."""

from typing import Any, cast

from math_verify import grader as math_verify_grader
from sympy import Basic, Derivative, Expr, Float, Integral, Limit, MatrixBase, MatrixExpr, Product, Rational, Sum

DIGITS = 60  # worked out of exact numbers that are not rational
Value = Basic | MatrixBase  # what math-verify makes of a text
EXACT = Rational(1, 10**45)  # relative difference that leaves two exact numbers equal
ROUNDED = Rational(5, 10**10)  # where one is written in decimals: half a unit of the ninth decimal of 1.000000000
APPROXIMATE = Rational(1, 10**13)  # of sums, integrals and limits, which are worked out to 20 digits
WORKED_OUT = (Integral, Sum, Product, Limit, Derivative)
SAMPLES = (Rational(5, 7), Rational(-11, 3), Rational(13, 2))  # at which expressions with variables must not differ

_math_verify_says = math_verify_grader.sympy_numeric_eq


def numeric_equal(a: Value, b: Value, float_rounding: int, numeric_precision: int) -> bool:
    """Takes the place of math-verify's `sympy_numeric_eq`, whose signature it has: numbers, and matrices of them, are
    compared by their own digits; what it finds equal of expressions with variables must be so at a few points."""
    if isinstance(a, (MatrixBase, MatrixExpr)) and isinstance(b, (MatrixBase, MatrixExpr)):
        a, b = a.doit(), b.doit()
        if not isinstance(a, MatrixBase) or not isinstance(b, MatrixBase) or a.shape != b.shape:
            return False
        pairs = zip(a.flat(), b.flat(), strict=True)
        return all(numeric_equal(mine, theirs, float_rounding, numeric_precision) for mine, theirs in pairs)
    if _is_percentage(a) or _is_percentage(b):  # 9 % is 9, and it is 0.09
        return bool(_math_verify_says(a, b, float_rounding, numeric_precision)) and any(
            numbers_equal(mine, theirs) is not False
            for mine, theirs in ((a, b), (_of_percentage(a), b), (a, _of_percentage(b)))
        )
    found = numbers_equal(a, b)
    if found is not None:
        return found
    return bool(_math_verify_says(a, b, float_rounding, numeric_precision)) and not _differ_somewhere(a, b)


def numbers_equal(a: Value, b: Value) -> bool | None:
    """Whether two numbers are equal; None where one is no finite number, or cannot be worked out."""
    if not all(isinstance(value, Expr) and value.is_number for value in (a, b)):
        return None
    hard = a.has(*WORKED_OUT) or b.has(*WORKED_OUT)
    if not hard:
        a, b = a.doit(), b.doit()
        if a.is_Rational and b.is_Rational:
            return bool(a == b)
    tolerance = APPROXIMATE if hard else EXACT
    if a.has(Float) or b.has(Float):
        tolerance = ROUNDED
    mine, theirs = (_parts(cast(Expr, value), 20 if hard else DIGITS) for value in (a, b))
    if mine is None or theirs is None:
        return None
    scale = max(abs(part) for part in (*mine, *theirs))
    return all(abs(part - other) <= tolerance * scale for part, other in zip(mine, theirs, strict=True))


def _parts(value: Expr, digits: int) -> tuple[Expr, Expr] | None:
    """Real and imaginary part, to so many digits; what only approaches zero is zero."""
    found = value.evalf(digits)
    real, imaginary = found.as_real_imag()
    if not all(isinstance(part, Expr) and part.is_Number and part.is_finite for part in (real, imaginary)):
        return None
    return _significant(real), _significant(imaginary)


def _significant(part: Expr) -> Expr:
    # sympy gives a value whose digits all cancelled a precision of one bit.
    return Rational(0) if isinstance(part, Float) and part._prec == 1 else Rational(part)


def _differ_somewhere(a: Value, b: Value) -> bool:
    if not (isinstance(a, Expr) and isinstance(b, Expr)) or not (a.free_symbols or b.free_symbols):
        return False
    symbols: list[Any] = sorted(a.free_symbols | b.free_symbols, key=str)
    for shift in range(len(SAMPLES)):
        at: Any = {symbol: SAMPLES[(shift + place) % len(SAMPLES)] + place for place, symbol in enumerate(symbols)}
        if numbers_equal(a.subs(at), b.subs(at)) is False:
            return True
    return False


def _is_percentage(value: Value) -> bool:
    return math_verify_grader.get_pct_val(value) is not None


def _of_percentage(value: Value) -> Value:
    return math_verify_grader.get_pct_val(value, value)
