"""Which rows count: `data.filter`, a condition on a row's columns such as ``difficulty >= 6 and topic != "Geometry"``.

The language is a corner of Python's, read with `ast` and never executed: columns, numbers, texts and lists, compared
by ``== != < <= > >= in`` and ``not in``, joined by ``and``, ``or`` and ``not``. ``reward_model.style`` reaches into a
column of records. A text that is a number, as every number of a csv file, is compared with numbers as one.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any

from iwopd.data.values import is_missing, number_in, truth_of
from iwopd.errors import ConfigError, DataError

Condition = Callable[[Mapping[str, Any]], Any]

OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
ORDERED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


class Filter:
    """A condition on rows.

    Args:
        key: the setting it came from, for messages.
        text: the condition.

    Attributes:
        columns: the top-level columns it looks at.

    Raises:
        ConfigError: it is not a condition; says what is not understood.
    """

    def __init__(self, key: str, text: str):
        self.said = f"{key}={text}"
        self.columns: list[str] = []
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._refusal("not a condition") from None
        try:
            self._holds = self._condition(tree.body)
        except RecursionError:
            raise self._refusal("nested too deeply") from None

    def __call__(self, row: Mapping[str, Any], number: int) -> bool:
        """True for a row that is kept. A comparison with a null cell is false, as in SQL.

        Args:
            number: of the row, counted from 1, for messages.

        Raises:
            DataError: a cell cannot be compared with the value.
        """
        try:
            return bool(self._holds(row))
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{self.said}: row {number}: {error}; correct the filter or the row") from None

    def _condition(self, node: ast.expr) -> Condition:
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                parts = [self._condition(value) for value in values]
                return lambda row: all(part(row) for part in parts)
            case ast.BoolOp(values=values):
                parts = [self._condition(value) for value in values]
                return lambda row: any(part(row) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self._condition(operand)
                return lambda row: not inner(row)
            case ast.Compare(left=left, ops=operations, comparators=others):
                return self._comparison(left, operations, others)
            case ast.Name() | ast.Attribute():  # a column of true and false
                column = self._value(node)
                return lambda row: truth_of(column(row))
        raise self._refusal(f"{ast.unparse(node)} is not a condition")

    def _comparison(self, left: ast.expr, operations: list[ast.cmpop], others: list[ast.expr]) -> Condition:
        for operation in operations:
            if not isinstance(operation, (*OPERATORS, ast.In, ast.NotIn)):
                raise self._refusal("`is` is not known here")
        values = [self._value(value) for value in (left, *others)]

        def holds(row: Mapping[str, Any]) -> bool:
            found = [value(row) for value in values]
            return all(
                _compare(operation, first, second)
                for operation, first, second in zip(operations, found, found[1:], strict=False)
            )

        return holds

    def _value(self, node: ast.expr) -> Condition:
        match node:
            case ast.Name(id=name):
                self.columns += [name] if name not in self.columns else []
                return lambda row: row.get(name)
            case ast.Attribute(value=owner, attr=name):
                record = self._value(owner)
                return lambda row: (record(row) or {}).get(name)
            case ast.Constant(value=constant) if isinstance(constant, (int, float, str, bool)):
                return lambda row: constant
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=constant)) if isinstance(constant, (int, float)):
                return lambda row: -constant
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                parts = [self._value(item) for item in items]
                return lambda row: [part(row) for part in parts]
        raise self._refusal(f"{ast.unparse(node)} is neither a column nor a value")

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.said}: {reason}; write for example 'difficulty >= 6 and topic != \"Geometry\"'")


def _compare(operation: ast.cmpop, first: Any, second: Any) -> bool:  # noqa: ANN401  cells: what does not compare raises
    if is_missing(first) or is_missing(second):
        return False
    if isinstance(operation, (ast.In, ast.NotIn)):
        among = isinstance(second, (list, tuple))
        found = any(_compare(ast.Eq(), first, each) for each in second) if among else first in second
        return found is isinstance(operation, ast.In)
    try:
        first, second = _of_one_type(first, second)
    except ValueError:
        if not isinstance(operation, ORDERED):
            return isinstance(operation, ast.NotEq)
        text, other = (first, second) if isinstance(first, str) else (second, first)
        raise TypeError(f"the text {text[:40]!r} cannot be ordered against {other}") from None
    return first is not None and second is not None and OPERATORS[type(operation)](first, second)


def _of_one_type(first: object, second: object) -> tuple[object, object]:
    """Of a text and something else, the text as the other's type; None for a spelling of "no value".

    Raises:
        ValueError: the text is no such thing.
    """
    if isinstance(first, str) and not isinstance(second, str):
        return _like(first, second), _plain(second)
    if isinstance(second, str) and not isinstance(first, str):
        return _plain(first), _like(second, first)
    return _plain(first), _plain(second)


def _like(text: str, other: object) -> object:
    if isinstance(other, bool) and text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    if isinstance(other, (int, float, Decimal)):
        return number_in(text)
    if isinstance(other, (date, time)):
        return type(other).fromisoformat(text)
    raise ValueError(text)


def _plain(value: object) -> object:
    """A decimal as a float, for 0.1 in a filter is one; whole ones exactly."""
    if not isinstance(value, Decimal):
        return value
    return int(value) if value == value.to_integral_value() else float(value)
