"""The sum of absolute differences of two short runs of bytes, as vector code.

Numba's loop vectoriser needs more than 16 iterations, and a row of a window has at most 16 bytes. The vector code is
therefore written in portable LLVM IR, which compiles to a single psadbw on x86.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16

_BYTES = ir.VectorType(ir.IntType(8), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)


def _magnitude(builder: Any, words: Any) -> Any:
    flag = ir.IntType(1)
    kind = ir.FunctionType(_WORDS, [_WORDS, flag])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.abs.v{LANES}i32")
    return builder.call(function, [words, flag(0)])


def _sum(builder: Any, words: Any) -> Any:
    kind = ir.FunctionType(ir.IntType(32), [_WORDS])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{LANES}i32")
    return builder.call(function, [words])


def _run_distance(
    typing: Any, left: Any, left_start: Any, right: Any, right_start: Any, mask: Any, mask_start: Any
) -> Any:
    """run_distance(left, left_start, right, right_start, mask, mask_start) -> int32

    Return the sum of |left[i] - right[i]| over 16 bytes from the starts; bytes where the mask is 0 instead of 255 are
    left out. left, right and mask are contiguous uint8 vectors, the starts uint64. Bounds are not checked: all 16 bytes
    must exist.
    """
    signature = types.int32(left, left_start, right, right_start, mask, mask_start)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def load(number: int) -> Any:
            array = context.make_array(signature.args[number])(context, builder, arguments[number])
            pointer = builder.bitcast(builder.gep(array.data, [arguments[number + 1]]), _BYTES.as_pointer())
            return builder.load(pointer, align=1)

        chosen = load(4)
        ours, theirs = (builder.zext(builder.and_(load(number), chosen), _WORDS) for number in (0, 2))
        return _sum(builder, _magnitude(builder, builder.sub(ours, theirs)))

    return signature, generate


run_distance: Any = intrinsic(_run_distance)
