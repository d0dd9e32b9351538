"""Exhaustive window distances, for the methods that compare every candidate.

Candidates are flat positions of a stack (see `exemplar.Stack`). A pixel of the window has the same offset from every
candidate, so its differences for a run of candidates are a loop over contiguous memory, which the compiler vectorises.
Comparing windows one at a time with an early exit is several times slower.
"""

import numpy as np
from numba import njit

from texturegen.texture.kernels.exemplar import Stack

# Initial distance of positions that are not candidates. Real distances are smaller, and the sum of the two fits int32.
BARRIER = np.int32(1 << 30)
# Limit of the sum of a window's weights, so that distances stay below BARRIER; a channel differs by up to 255.
MAX_WEIGHT = (1 << 30) // (3 * 255 * 255)
# Distances are computed in runs of this many positions, which fit the first-level cache.
RUN = 512


def planes(pixels: np.ndarray) -> np.ndarray:
    """Return pixels uint8 (P, H, W, 3) as flat colour planes uint8 (3, P*H*W)."""
    return np.ascontiguousarray(pixels.reshape(-1, 3).T)


def barrier(exemplar: Stack, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Return int32 (P*H*W,): 0 at candidates, which have these margins to the edges of a patch, else BARRIER."""
    result = np.full(exemplar.pixels.shape[:3], BARRIER, dtype=np.int32)
    skip = exemplar.border
    for patch, (height, width) in zip(result, exemplar.sides, strict=True):
        patch[skip + top : skip + height - bottom, skip + left : skip + width - right] = 0
    return result.reshape(-1)


@njit(nogil=True, cache=True)
def add_taps(
    planes: np.ndarray,
    offsets: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    first: int,
    out: np.ndarray,
) -> None:
    """Add the weighted squared colour difference of every tap to the distances of positions first, first + 1, ...

    Parameters
    ----------
    planes : uint8 (3, M).
    offsets : int64 (T,), offset of each tap from a candidate.
    values : int32 (T, 3), colours to compare with.
    weights : int32 (T,).
    first : the first position.
    out : int32, the distances; modified.
    """
    length = len(out)
    for tap in range(len(offsets)):
        start = first + offsets[tap]
        # Indices that may be negative prevent vectorisation, so the loop uses slices.
        red = planes[0, start : start + length]
        green = planes[1, start : start + length]
        blue = planes[2, start : start + length]
        weight = weights[tap]
        r, g, b = values[tap, 0], values[tap, 1], values[tap, 2]
        for k in range(length):
            dr = np.int32(np.int32(red[k]) - r)
            dg = np.int32(np.int32(green[k]) - g)
            db = np.int32(np.int32(blue[k]) - b)
            out[k] += np.int32(weight * np.int32(dr * dr + dg * dg + db * db))
