"""Exhaustive window distances, shared by the methods that look at every candidate.

Candidates are flat positions of a stack (see `exemplar.Stack`): one pixel of the window lies at the same offset from
every candidate, so a run of contiguous memory adds that pixel's difference to many candidates at once, which the
compiler turns into vector instructions. Leaving each window early, one after the other, is several times slower.
"""

import numpy as np
from numba import njit

from texturegen.texture.kernels.exemplar import Stack

# What positions that are no candidates start with. Real distances stay below it, and both together fit int32.
BARRIER = np.int32(1 << 30)
# Hence the sum of a window's weights stays below this (255 * 255 is the largest squared difference of a channel).
MAX_WEIGHT = (1 << 30) // (3 * 255 * 255)
# Distances are taken in runs of this many positions, which stay in the first-level cache.
RUN = 512


def planes(pixels: np.ndarray) -> np.ndarray:
    """Split pixels uint8 (P, H, W, 3) into flat colour planes uint8 (3, P*H*W)."""
    return np.ascontiguousarray(pixels.reshape(-1, 3).T)


def barrier(exemplar: Stack, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Return int32 (P*H*W): 0 where these margins to the patch's edges are kept (a candidate), else BARRIER."""
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
    """Add every tap's weighted squared colour difference to the distances of positions first, first + 1, ...

    planes uint8 (3, M); per tap: offsets int64 (T,), values int32 (T, 3), weights int32 (T,); out int32.
    """
    length = len(out)
    for tap in range(len(offsets)):
        start = first + offsets[tap]
        # Slices, because an index that may be negative keeps the loop from being vectorised.
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
