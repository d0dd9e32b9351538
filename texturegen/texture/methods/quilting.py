"""Image quilting: Efros and Freeman, "Image quilting for texture synthesis and transfer", SIGGRAPH 2001, section 2.

Square blocks are placed in scan order, each overlapping the blocks above and to the left. A block is drawn from the
positions in the patches whose overlap matches almost best, and is cut along the minimum error boundary (section 2.1).
Blocks are not blended, so every pixel is copied from a patch.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numba import njit

from texturegen.errors import UserError
from texturegen.texture.kernels.cut import accumulate, trace
from texturegen.texture.kernels.exemplar import check_sides, stack, unflatten
from texturegen.texture.kernels.rand import draw
from texturegen.texture.kernels.windows import BARRIER, RUN, add_taps, barrier, planes
from texturegen.texture.settings import Integer, Real

_MIN_BLOCK, _MAX_BLOCK, _MAX_OVERLAP = 2, 96, 32  # the errors of larger overlaps could exceed windows.BARRIER
_NO_CUT = np.int64(1 << 40)  # more than any cut costs


def quilting(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    seed: int,
    *,
    block: Annotated[int | None, Integer(_MIN_BLOCK, _MAX_BLOCK, automatic=True)] = None,
    overlap: Annotated[int | None, Integer(1, _MAX_OVERLAP, automatic=True)] = None,
    tolerance: Annotated[float, Real(0, 10)] = 0.1,
) -> np.ndarray:
    """Return the source map of a texture composed of overlapping blocks.

    Parameters
    ----------
    patches : uint8 (h, w, 3) arrays.
    size : (H, W) of the texture in pixels.
    seed : seed of all random choices.
    block : side of the blocks in pixels; None for half the smallest side of the patches, at most 96. Smaller blocks
        copy less verbatim, but repeat the same position more often.
    overlap : width of the overlap in pixels, at most half a block; None for a sixth of a block, as in the paper.
    tolerance : a block is drawn from those whose overlap error is at most 1 + tolerance times the smallest.

    Returns
    -------
    int32 (H, W, 3), (patch, row, column) of every pixel.

    Raises
    ------
    UserError : a patch is smaller than a block, or the overlap exceeds half a block.
    """
    if block is None:
        half = min(min(patch.shape[:2]) for patch in patches) // 2
        block = min(max(half, _MIN_BLOCK), _MAX_BLOCK)
    if overlap is None:
        overlap = max(block // 6, 1)
    if 2 * overlap > block:
        raise UserError(
            f"setting 'overlap' of method 'quilting' is {overlap}; it must be at most half of 'block', {block}"
        )
    check_sides(patches, block, unit="block")
    exemplar = stack(patches, 0)
    flat = _quilt(
        planes(exemplar.pixels),
        barrier(exemplar, 0, block - 1, 0, block - 1),
        exemplar.stride,
        block,
        overlap,
        size[0],
        size[1],
        tolerance,
        np.uint64(seed),
    )
    return unflatten(flat, exemplar)


@njit(nogil=True, cache=True)
def _quilt(
    planes: np.ndarray,
    start: np.ndarray,
    stride: int,
    block: int,
    overlap: int,
    height: int,
    width: int,
    tolerance: float,
    key: np.uint64,
) -> np.ndarray:
    """Place the blocks; return flat source positions int32 (H, W). The position of a block is its top left pixel."""
    source = np.empty((height, width), dtype=np.int32)
    candidates = np.flatnonzero(start == 0)
    first, last = candidates[0], candidates[-1]
    errors = np.empty(last - first + 1, dtype=np.int32)
    step = block - overlap
    number = 0
    for top in range(0, max(height - overlap, 1), step):
        for left in range(0, max(width - overlap, 1), step):
            above, before = min(overlap, top), min(overlap, left)
            # Crop the block to the output.
            region = source[top : min(top + block, height), left : min(left + block, width)]
            errors[:] = start[first : last + 1]
            _measure(region, above, before, planes, stride, first, errors)
            corner = first + _pick(errors, tolerance, key, number)
            _paste(region, above, before, planes, stride, corner)
            number += 1
    return source


@njit(nogil=True, cache=True)
def _measure(
    region: np.ndarray, above: int, before: int, planes: np.ndarray, stride: int, first: int, errors: np.ndarray
) -> None:
    """Add the squared differences in the overlap to the errors of all candidates."""
    tall, wide = region.shape
    offsets = np.empty(tall * before + above * wide, dtype=np.int64)
    values = np.empty((len(offsets), 3), dtype=np.int32)
    taps = 0
    for i in range(tall):
        for j in range(wide if i < above else min(before, wide)):
            offsets[taps] = i * stride + j
            for channel in range(3):
                values[taps, channel] = planes[channel, region[i, j]]
            taps += 1
    ones = np.ones(taps, dtype=np.int32)
    for begin in range(0, len(errors), RUN):
        add_taps(planes, offsets[:taps], values, ones, first + begin, errors[begin : begin + RUN])


@njit(nogil=True, cache=True)
def _pick(errors: np.ndarray, tolerance: float, key: np.uint64, number: int) -> int:
    """Draw one of the candidates whose error is at most 1 + tolerance times the smallest."""
    limit = np.int32(min(np.int64(errors.min() * (1 + tolerance)), np.int64(BARRIER) - 1))
    near = np.flatnonzero(errors <= limit)
    return near[draw(key, number, len(near))]


@njit(nogil=True, cache=True)
def _paste(region: np.ndarray, above: int, before: int, planes: np.ndarray, stride: int, corner: int) -> None:
    """Copy the part of the block at `corner` that lies below and to the right of the cuts."""
    tall, wide = region.shape
    rows, columns = _boundary(region, min(above, tall), min(before, wide), planes, stride, corner)
    for i in range(tall):
        for j in range(columns[i], wide):
            if i >= rows[j]:
                region[i, j] = corner + i * stride + j


@njit(nogil=True, cache=True)
def _boundary(
    region: np.ndarray, above: int, before: int, planes: np.ndarray, stride: int, corner: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of a block that is copied in each column, and the first column in each row."""
    tall, wide = region.shape
    rows, columns = np.zeros(wide, dtype=np.int64), np.zeros(tall, dtype=np.int64)
    # Paths start at the bottom and right ends of the overlaps.
    upward, leftward = np.zeros((tall, before), dtype=np.int64), np.zeros((wide, above), dtype=np.int64)
    for i in range(tall):
        for j in range(before):
            upward[tall - 1 - i, j] = _difference(planes, corner + i * stride + j, region[i, j])
    for i in range(above):
        for j in range(wide):
            leftward[wide - 1 - j, i] = _difference(planes, corner + i * stride + j, region[i, j])
    up, along = accumulate(upward), accumulate(leftward)
    if before > 0 and above > 0:
        # The two minimal paths meet, and the overall minimum is the cut (section 2.1).
        row, column = 0, 0
        least = _NO_CUT
        for i in range(above):
            for j in range(before):
                # A pixel on both paths counts once.
                total = up[tall - 1 - i, j] + along[wide - 1 - j, i] - upward[tall - 1 - i, j]
                if total < least:
                    least, row, column = total, i, j
        columns[:row], rows[:column] = column, row
        columns[row:] = trace(up[: tall - row], column)[::-1]
        rows[column:] = trace(along[: wide - column], row)[::-1]
    elif before > 0:
        columns[:] = trace(up, int(np.argmin(up[-1])))[::-1]
    elif above > 0:
        rows[:] = trace(along, int(np.argmin(along[-1])))[::-1]
    return rows, columns


@njit(nogil=True, cache=True)
def _difference(planes: np.ndarray, position: int, other: int) -> np.int64:
    total = np.int64(0)
    for channel in range(3):
        difference = np.int64(planes[channel, position]) - np.int64(planes[channel, other])
        total += difference * difference
    return total
