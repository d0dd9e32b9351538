"""Exact nearest windows between two sets of images, for the quality figures.

The search is exhaustive, but a lower bound of the distance, computed from the sums of a few blocks, rules out most
windows: successive elimination (Li and Salari, "Successive elimination algorithm for motion estimation", IEEE
Transactions on Image Processing 4(1), 1995), here for squared differences.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from texturegen.texture.kernels.rand import draw
from texturegen.texture.kernels.windows import BARRIER

WINDOW = 7
_COLUMN = 4 * WINDOW  # bytes
# 2x2 blocks of red + green + blue start at rows and columns 0, 2 and 5 of a window. By the Cauchy-Schwarz inequality,
# the squared difference of the sums of two blocks (12 values each) is at most 12 times their squared distance.
_BLOCKS_AT = (0, 2, 5)
_BLOCK_VALUES = 12
_RUN = 128  # positions per run; only the minimum bound of a run is kept, so most runs are skipped entirely


class Windows(NamedTuple):
    """The 7x7 windows of several images, identified by positions.

    The N pixels with at least six rows below them are counted row by row and image by image. The position of a window
    is that of its top left pixel, and its right neighbour has the next position.
    """

    columns: np.ndarray  # uint8 (28*(N+6),): red, green, blue, 0 of seven pixels in a column; seven columns a window
    blocks: np.ndarray  # int16 (3, N+6): sums of the blocks that start at this column, in rows 0, 2 and 5
    barrier: np.ndarray  # int32 (N,): 0 where a window starts, else BARRIER
    sides: np.ndarray  # int64 (P, 2): height and width of every image, including those without windows
    total: int  # number of windows


@njit(nogil=True, cache=True)
def lay_out(pixels: np.ndarray, sides: np.ndarray) -> Windows:
    """Lay out the windows of images.

    pixels : uint8 (M, 3), concatenated pixels of the images. sides : int64 (P, 2), their heights and widths.
    """
    length, total = 0, 0
    for height, width in sides:
        if min(height, width) >= WINDOW:
            length += (height - WINDOW + 1) * width
            total += (height - WINDOW + 1) * (width - WINDOW + 1)
    columns = np.empty((length + WINDOW - 1, WINDOW), dtype=np.uint32)
    blocks = np.zeros((len(_BLOCKS_AT), length + WINDOW - 1), dtype=np.int16)
    corners = np.full(length, BARRIER, dtype=np.int32)
    start, first = 0, 0
    for height, width in sides:
        image = pixels[first : first + height * width]
        first += len(image)
        if min(height, width) >= WINDOW:
            end = start + (height - WINDOW + 1) * width
            _fill_columns(image, width, columns[start:end])
            _fill_blocks(image, width, blocks[:, start:end])
            for line in range(start, end, width):
                corners[line : line + width - WINDOW + 1] = 0
            start = end
    return Windows(columns.reshape(-1).view(np.uint8), blocks, corners, sides, total)


@njit(nogil=True, cache=True)
def find_nearest(
    side: Windows, other: Windows, samples: int, key: np.uint64, with_right: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest window in `other` for a sample of the windows in `side`; both must have windows.

    The sample is stratified: the windows, in order of position, are divided into `samples` strata of equal size, and
    one is drawn from each. All windows are equally likely. With as many samples as windows, all windows are used.

    Returns
    -------
    distances : int64 (n,), squared.
    adjacent : int64 (n,), 1 if the right neighbour's nearest window is the right neighbour of the nearest window, 0 if
        not, and -1 if there is no right neighbour or `with_right` is False.
    """
    count = min(samples, side.total)
    distances = np.empty(count, dtype=np.int64)
    adjacent = np.full(count, -1, dtype=np.int64)
    bounds = np.empty(len(other.barrier), dtype=np.int32)
    unknown = int(np.int64(-1))  # Numba would compile the search again for a literal -1
    for n in range(count):
        # A boundary between two strata may divide a window, which then belongs to both in proportion.
        corner = _position(side.sides, (n * side.total + draw(key, n, side.total)) // count)
        here, distances[n] = _nearest(side, corner, other, unknown, bounds)
        if with_right and corner + 1 < len(side.barrier) and side.barrier[corner + 1] == 0:
            expected = here + 1
            known = expected < len(other.barrier) and other.barrier[expected] == 0
            there, _ = _nearest(side, corner + 1, other, expected if known else unknown, bounds)
            adjacent[n] = there == expected
    return distances, adjacent


@njit(nogil=True, cache=True)
def _nearest(side: Windows, corner: int, other: Windows, guess: int, bounds: np.ndarray) -> tuple[int, int]:
    """Return position and squared distance of the nearest window in `other`; the first position wins ties.

    guess : position of a window that is likely to be near, or -1. bounds : int32 (N,), scratch.
    """
    values = np.empty((3, 3), dtype=np.int16)
    for row in range(3):
        for column in range(3):
            values[row, column] = side.blocks[row, corner + _BLOCKS_AT[column]]
    least_bounds = np.empty((len(bounds) + _RUN - 1) // _RUN, dtype=np.int32)
    for run in range(len(least_bounds)):
        least_bounds[run] = _bound(values, other, run * _RUN, bounds[run * _RUN : (run + 1) * _RUN])
    window = side.columns[_COLUMN * corner : _COLUMN * (corner + WINDOW)]
    best = guess
    if best < 0:
        run = int(np.argmin(least_bounds))
        best = run * _RUN + int(np.argmin(bounds[run * _RUN : (run + 1) * _RUN]))
    least = int(_distance(window, other, best))
    limit = np.int32(_BLOCK_VALUES * least)
    for run in range(len(least_bounds)):
        if least_bounds[run] > limit:
            continue
        first = run * _RUN
        candidates = bounds[first : first + _RUN]
        for k in range(len(candidates)):
            if candidates[k] <= limit:
                distance = int(_distance(window, other, first + k))
                if distance < least or (distance == least and first + k < best):
                    best, least = first + k, distance
                    limit = np.int32(_BLOCK_VALUES * least)
    return best, least


@njit(nogil=True, cache=True)
def _bound(values: np.ndarray, other: Windows, first: int, out: np.ndarray) -> np.int32:
    """Write 12 times a lower bound of the squared distances at positions first, first + 1, ...; return the minimum."""
    length = len(out)
    corners = other.barrier[first : first + length]
    upper = other.blocks[0, first : first + length + WINDOW - 1]
    middle = other.blocks[1, first : first + length + WINDOW - 1]
    lower = other.blocks[2, first : first + length + WINDOW - 1]
    a, b, c = values[0, 0], values[0, 1], values[0, 2]
    d, e, f = values[1, 0], values[1, 1], values[1, 2]
    g, h, i = values[2, 0], values[2, 1], values[2, 2]
    least = BARRIER
    # An inner loop over the nine blocks would prevent vectorisation of this one, so it is unrolled by hand.
    for k in range(length):
        total = np.int32(
            corners[k]
            + _square(upper[k], a)
            + _square(upper[k + 2], b)
            + _square(upper[k + 5], c)
            + _square(middle[k], d)
            + _square(middle[k + 2], e)
            + _square(middle[k + 5], f)
            + _square(lower[k], g)
            + _square(lower[k + 2], h)
            + _square(lower[k + 5], i)
        )
        out[k] = total
        least = min(least, total)
    return least


@njit(nogil=True, cache=True)
def _square(left: int, right: int) -> np.int32:
    difference = np.int32(np.int32(left) - np.int32(right))
    return np.int32(difference * difference)


@njit(nogil=True, cache=True)
def _distance(window: np.ndarray, other: Windows, position: int) -> np.int32:
    """Return the squared distance of two windows. An early exit would prevent vectorisation, so there is none."""
    theirs = other.columns[_COLUMN * position : _COLUMN * (position + WINDOW)]
    total = np.int32(0)
    for k in range(len(window)):
        total = np.int32(total + _square(window[k], theirs[k]))
    return total


@njit(nogil=True, cache=True)
def _position(sides: np.ndarray, number: int) -> int:
    """Return the position of a window from its index, counted row by row and image by image."""
    start = 0
    for height, width in sides:
        if min(height, width) >= WINDOW:
            down, across = height - WINDOW + 1, width - WINDOW + 1
            if number < down * across:
                return start + number // across * width + number % across
            number -= down * across
            start += down * width
    return -1


@njit(nogil=True, cache=True)
def _fill_columns(image: np.ndarray, width: int, columns: np.ndarray) -> None:
    colours = np.empty(len(image), dtype=np.uint32)
    for pixel in range(len(image)):
        red, green, blue = np.uint32(image[pixel, 0]), np.uint32(image[pixel, 1]), np.uint32(image[pixel, 2])
        colours[pixel] = red | green << np.uint32(8) | blue << np.uint32(16)
    for position in range(len(columns)):
        below = colours[position:]
        column = columns[position]
        for row in range(WINDOW):
            column[row] = below[row * width]


@njit(nogil=True, cache=True)
def _fill_blocks(image: np.ndarray, width: int, blocks: np.ndarray) -> None:
    greys = np.zeros(len(image) + 1, dtype=np.int16)
    for pixel in range(len(image)):
        greys[pixel] = np.int16(image[pixel, 0]) + np.int16(image[pixel, 1]) + np.int16(image[pixel, 2])
    length = blocks.shape[1]
    for k in range(len(_BLOCKS_AT)):
        top = _BLOCKS_AT[k] * width
        upper = greys[top : top + length + 1]
        lower = greys[top + width : top + width + length + 1]
        sums = blocks[k]
        for position in range(length):
            sums[position] = upper[position] + upper[position + 1] + lower[position] + lower[position + 1]
