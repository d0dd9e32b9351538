"""Conditions on manifest rows, in Python syntax: `completeness < 12 and status == 'ok'`.

The text is parsed and never executed. It may hold column names, numbers, quoted strings, comparisons (also chained,
`in`, `is None`), `and`, `or` and `not`. A comparison with a null is False: `completeness < 12` is False for a failed
image, and `not completeness < 12` is True. `is None` and `is not None` test for nulls. A number is rounded to the
precision of its column, so that `verbatim <= 0.3` holds for a figure of 0.3, which the manifest keeps in 32 bits.
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
ALLOWED = "a filter may hold column names, numbers, quoted strings, comparisons, `in`, `is None`, and, or, not"
MAX_SHOWN = 60  # characters of a filter in a message


def rows_that_pass(text: str, table: pa.Table) -> pa.ChunkedArray:
    """Evaluate a condition on every row of a manifest.

    Parameters
    ----------
    text : str
        The condition.
    table : pyarrow.Table
        The manifest.

    Returns
    -------
    pyarrow.ChunkedArray
        bool (rows,), without nulls; True where the condition holds.

    Raises
    ------
    UserError
        The text is not a condition on columns of the table; the message gives the position of the error.

    Examples
    --------
    >>> import texturegen
    >>> from texturegen.shards.filter import rows_that_pass
    >>> manifest = texturegen.open_shards("shards").manifest
    >>> sum(rows_that_pass("label in (0, 1) and width >= 32", manifest).to_pylist())
    14
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about invalid escapes
            tree = ast.parse(text.strip(), mode="eval").body
        return _Filter(text.strip(), table).condition(tree)
    except SyntaxError as error:
        where = _place(error.offset, error.lineno or 1) if error.offset else " at its end"
        raise UserError(f"invalid filter {text!r}{where} ({error.msg}); {ALLOWED}") from None
    except UserError:
        raise
    except (ValueError, RecursionError, MemoryError):  # null bytes, or nesting too deep for the parser
        raise UserError(f"invalid filter {text[:MAX_SHOWN]!r}...; {ALLOWED}") from None


class _Filter:
    """Evaluate a parsed condition on a table; errors quote the part of the text concerned."""

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
                raise self.fault(node, f"is a column, not a condition; write for instance {node.id} == ...")
        raise self.fault(node, f"is not a condition; {ALLOWED}")

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pa.ChunkedArray:
        if isinstance(op, ast.Is | ast.IsNot):
            if not isinstance(left, ast.Name) or not _is_none(right):
                raise self.fault(left, "`is` can only test whether a column `is None` or `is not None`")
            column = self.table[self.column(left)]
            return pc.is_null(column) if isinstance(op, ast.Is) else pc.is_valid(column)
        if isinstance(op, ast.In | ast.NotIn):
            found = self.contained(left, right)
            return pc.invert(found) if isinstance(op, ast.NotIn) else found
        kinds = [self.kind(side) for side in (left, right)]
        if kinds[0] != kinds[1]:
            types = " and ".join(
                f"{self.part(side)} is {kind}" for side, kind in zip((left, right), kinds, strict=True)
            )
            raise self.fault(left, f"is compared with another type: {types}")
        if not isinstance(left, ast.Name) and not isinstance(right, ast.Name):
            raise self.fault(left, "is compared with another constant; one side must be a column")
        return pc.fill_null(COMPARISONS[type(op)](self.value(left, right), self.value(right, left)), False)

    def contained(self, left: ast.expr, right: ast.expr) -> pa.ChunkedArray:
        if not isinstance(left, ast.Name) or not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
            raise self.fault(right, "`in` needs a column on its left and values on its right, as in label in (1, 2)")
        for element in right.elts:
            if isinstance(element, ast.Name) or self.kind(element) != self.kind(left):
                raise self.fault(element, f"cannot occur in {left.id}, which is {self.kind(left)}")
        equal = [pc.equal(self.value(left, left), self.value(element, left)) for element in right.elts]
        return pc.fill_null(functools.reduce(pc.or_, equal), False)

    def kind(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            kind = self.table.schema.field(self.column(node)).type
            if pa.types.is_string(kind):
                return "a string"
            if pa.types.is_integer(kind) or pa.types.is_floating(kind):
                return "a number"
            raise self.fault(node, f"is a column of {kind}, which a filter cannot compare")
        return "a string" if isinstance(self.constant(node), str) else "a number"

    def value(self, node: ast.expr, other: ast.expr) -> Any:
        """Return a column, or a constant in the precision of `other`, the column that it is compared with."""
        if isinstance(node, ast.Name):
            return self.table[self.column(node)]
        constant = self.constant(node)
        kind = self.table.schema.field(self.column(other)).type if isinstance(other, ast.Name) else None
        try:
            if kind is not None and pa.types.is_floating(kind):
                return pa.scalar(float(constant), kind)
            return pa.scalar(constant)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            raise self.fault(node, "is outside the range of any column") from None

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
        line = self.text.splitlines()[node.lineno - 1].encode()
        column = len(line[: node.col_offset].decode()) + 1  # Python's parser counts bytes
        return UserError(f"filter: {self.part(node)!r}{_place(column, node.lineno)} {reason}")


def _place(column: int, line: int) -> str:
    """Return where a fault is, its column counted in characters from 1."""
    return f" at character {column}" + (f" of line {line}" if line > 1 else "")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
