"""Conditions on manifest rows, written as in Python: `completeness < 12 and status == 'ok'`.

The text is parsed, never run: column names, numbers, texts, comparisons (also chained, `in`, `is None`), and, or, not;
anything else is refused. A comparison with a null is false (so `completeness < 12` is false for a failed image, and
`not completeness < 12` true); `is None` and `is not None` ask for nulls.
"""

import ast
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from texturegen.errors import UserError, nearest

COMPARISONS: dict[type[ast.cmpop], Callable[..., Any]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
ALLOWED = "a filter has column names, numbers, quoted texts, comparisons, `in`, `is None`, and, or, not"


def rows_that_pass(text: str, table: pa.Table) -> pa.ChunkedArray:
    """Return one boolean per row of `table`, no nulls.

    Raises UserError with the place in `text` for whatever is not a condition on the table's columns.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python about escapes
            tree = ast.parse(text.strip(), mode="eval").body
        return _Filter(text.strip(), table).condition(tree)
    except SyntaxError as error:
        where = f" at character {error.offset}" if error.offset else " at its end"
        raise UserError(f"the filter {text!r} cannot be read{where} ({error.msg}); {ALLOWED}") from None
    except UserError:
        raise
    except (ValueError, RecursionError, MemoryError):  # null bytes; a thousand brackets
        raise UserError(f"the filter {text[:60]!r}... cannot be read; {ALLOWED}") from None


class _Filter:
    def __init__(self, text: str, table: pa.Table) -> None:
        self.text, self.table = text, table

    def condition(self, node: ast.expr) -> pa.ChunkedArray:
        match node:
            case ast.BoolOp(op=op, values=values):
                join = pc.and_ if isinstance(op, ast.And) else pc.or_
                return functools.reduce(join, [self.condition(value) for value in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return pc.invert(self.condition(operand))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                sides = [left, *comparators]
                pairs = [self.compare(*three) for three in zip(sides, ops, sides[1:], strict=False)]
                return functools.reduce(pc.and_, pairs)
            case ast.Name():
                self.column(node)
                raise self.fault(node, f"is a column, not a condition on it; write for instance {node.id} == ...")
        raise self.fault(node, f"is no condition; {ALLOWED}")

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pa.ChunkedArray:
        if isinstance(op, ast.Is | ast.IsNot):
            if not isinstance(left, ast.Name) or not _is_none(right):
                raise self.fault(left, "`is` asks only whether a column `is None` or `is not None`")
            column = self.table[self.column(left)]
            return pc.is_null(column) if isinstance(op, ast.Is) else pc.is_valid(column)
        if isinstance(op, ast.In | ast.NotIn):
            found = self.contained(left, right)
            return pc.invert(found) if isinstance(op, ast.NotIn) else found
        kinds = [self.kind(side) for side in (left, right)]
        if kinds[0] != kinds[1]:
            said = " and ".join(f"{self.part(side)} is {kind}" for side, kind in zip((left, right), kinds, strict=True))
            raise self.fault(left, f"cannot be compared with what follows: {said}")
        if not isinstance(left, ast.Name) and not isinstance(right, ast.Name):
            raise self.fault(left, "is compared with another constant; one side must be a column")
        return pc.fill_null(COMPARISONS[type(op)](self.value(left), self.value(right)), False)

    def contained(self, left: ast.expr, right: ast.expr) -> pa.ChunkedArray:
        if not isinstance(left, ast.Name) or not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
            raise self.fault(right, "`in` needs a column before it and values behind it, as in label in (1, 2)")
        for element in right.elts:
            if isinstance(element, ast.Name) or self.kind(element) != self.kind(left):
                raise self.fault(element, f"cannot be looked for in {left.id}, which is {self.kind(left)}")
        equal = [pc.equal(self.value(left), self.value(element)) for element in right.elts]
        return pc.fill_null(functools.reduce(pc.or_, equal), False)

    def kind(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            kind = self.table.schema.field(self.column(node)).type
            if pa.types.is_string(kind):
                return "text"
            if pa.types.is_integer(kind) or pa.types.is_floating(kind):
                return "a number"
            raise self.fault(node, f"is a column of {kind}, which a filter cannot compare")
        return "text" if isinstance(self.constant(node), str) else "a number"

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.table[self.column(node)]
        try:
            return pa.scalar(self.constant(node))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            raise self.fault(node, "is beyond what a column can hold") from None

    def constant(self, node: ast.expr) -> float | str:
        match node:
            case ast.Constant(value=str() | int() | float() as value) if not isinstance(value, bool):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
        if _is_none(node):
            raise self.fault(node, "is never equal to anything; write `is None` or `is not None`")
        raise self.fault(node, f"is neither a column nor a constant; {ALLOWED}")

    def column(self, node: ast.Name) -> str:
        names = self.table.column_names
        if node.id not in names:
            raise self.fault(node, f"is not a column{nearest(node.id, names)}; columns: {', '.join(names)}")
        return node.id

    def part(self, node: ast.expr) -> str:
        return ast.get_source_segment(self.text, node) or "?"

    def fault(self, node: ast.expr, reason: str) -> UserError:
        place = node.col_offset + 1 if node.lineno == 1 else f"{node.col_offset + 1} of line {node.lineno}"
        return UserError(f"filter: {self.part(node)!r} at character {place} {reason}")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
