"""Which rows count: `data.filter`, a condition on a row's columns such as ``difficulty >= 6 and topic != "Geometry"``.

The language is a corner of Python's, read with `ast` and never executed: columns, numbers, texts and lists, compared
by ``== != < <= > >= in`` and ``not in``, joined by ``and``, ``or`` and ``not``. ``reward_model.style`` reaches into a
column of records.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from iwopd.errors import ConfigError, DataError

Condition = Callable[[Mapping[str, Any]], Any]

OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, among: value in among,
    ast.NotIn: lambda value, among: value not in among,
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
            raise DataError(f"{self.said}: row {number}: {error}; mend the filter or the row") from None

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
                return self._value(node)
        raise self._refusal(f"{ast.unparse(node)} is not a condition")

    def _comparison(self, left: ast.expr, operations: list[ast.cmpop], others: list[ast.expr]) -> Condition:
        for operation in operations:
            if type(operation) not in OPERATORS:
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


def _compare(operation: ast.cmpop, first: Any, second: Any) -> bool:
    if first is None or second is None:
        return False
    if isinstance(operation, ORDERED) and isinstance(first, str) != isinstance(second, str):
        text, other = (first, second) if isinstance(first, str) else (second, first)
        raise TypeError(f"the text {text[:40]!r} cannot be ordered against {other!r}")
    return OPERATORS[type(operation)](first, second)
