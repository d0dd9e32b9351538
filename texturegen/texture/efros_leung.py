"""Efros and Leung, "Texture synthesis by non-parametric sampling", ICCV 1999.

Grown pixel by pixel from a 3x3 seed, after their pseudo-code ("Texture Synthesis Algorithm Details"). Left out: the
error threshold 0.3, which only puts a pixel off to a later round, and the normaliser of the distance, the sum of the
weights of the known pixels, which is the same for all candidates of a pixel and so does not change the choice.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numba import njit

from texturegen.texture.exemplar import check_sides, stack, unflatten
from texturegen.texture.rand import derive, draw, shuffle
from texturegen.texture.settings import Fraction, Whole
from texturegen.texture.windows import BARRIER, MOST_WEIGHT, RUN, add_taps, barrier, planes


def efros_leung(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    seed: int,
    *,
    window: Annotated[int, Whole(3, 31, odd=True)] = 7,
    epsilon: Annotated[float, Fraction(0, 10)] = 0.1,
) -> np.ndarray:
    """Return the source map int32 (H, W, 3) of a texture grown from a seed at its centre.

    window: side of the neighbourhood. Theirs go from 5 to 23, by the scale of the texture; 7 leaves the 16 pixel
    patches of a 32 pixel image 100 candidates each, which 11 would cut to 36.
    epsilon: a pixel is drawn from all candidates whose distance is at most 1 + epsilon times the smallest.
    """
    check_sides(patches, window)
    exemplar = stack(patches, 0)
    margin = window // 2
    flat = _grow(
        planes(exemplar.pixels),
        barrier(exemplar, margin, margin, margin, margin),
        exemplar.sides,
        exemplar.pixels.shape[1],
        exemplar.stride,
        quantised_gaussian(window),
        size[0],
        size[1],
        epsilon,
        np.uint64(seed),
    )
    return unflatten(flat, exemplar)


def quantised_gaussian(window: int) -> np.ndarray:
    """Return Gaussian weights int32 (window, window), sigma = window / 6.4, whole so that distances are exact.

    They are as large as sums in int32 allow, and at least 1: no known pixel is ignored.
    """
    across = np.arange(window) - window // 2
    square = across[:, None] ** 2 + across[None, :] ** 2
    weights = np.exp(-square / (2 * (window / 6.4) ** 2))
    scale = (MOST_WEIGHT - window * window) / weights.sum()
    return np.maximum(np.floor(weights * scale), 1).astype(np.int32)


@njit(nogil=True, cache=True)
def _grow(
    planes: np.ndarray,
    start: np.ndarray,
    sides: np.ndarray,
    rows: int,
    stride: int,
    weights: np.ndarray,
    height: int,
    width: int,
    epsilon: float,
    key: np.uint64,
) -> np.ndarray:
    source = np.full((height, width), -1, dtype=np.int32)
    newest = _plant(source, sides, rows, stride, derive(key, 0))
    pick_key, round_key = derive(key, 1), derive(key, 2)
    # Positions before the first candidate and after the last one need no distances.
    candidates = np.flatnonzero(start == 0)
    first, last = candidates[0], candidates[-1]
    distances = np.empty(last - first + 1, dtype=np.int32)
    number = 0
    while len(newest) > 0:
        ring = _ring(source, newest)
        shuffle(ring, len(ring), derive(round_key, number))
        for pixel in _most_neighbours_first(source, ring):
            distances[:] = start[first : last + 1]
            _measure(source, pixel, planes, weights, stride, first, distances)
            choice = _pick(distances, epsilon, pick_key, pixel)
            source[pixel // width, pixel % width] = first + choice
        newest = ring
        number += 1
    return source


@njit(nogil=True, cache=True)
def _plant(source: np.ndarray, sides: np.ndarray, rows: int, stride: int, key: np.uint64) -> np.ndarray:
    """Copy 3x3 pixels, taken from a random place, to the centre; return the output pixels filled."""
    height, width = source.shape
    patch = draw(key, 0, len(sides))
    top, left = draw(key, 1, sides[patch, 0] - 2), draw(key, 2, sides[patch, 1] - 2)
    filled = []
    for i in range(3):
        for j in range(3):
            row, column = height // 2 - 1 + i, width // 2 - 1 + j
            if 0 <= row < height and 0 <= column < width:
                source[row, column] = (patch * rows + top + i) * stride + left + j
                filled.append(row * width + column)
    return np.array(filled)


@njit(nogil=True, cache=True)
def _ring(source: np.ndarray, newest: np.ndarray) -> np.ndarray:
    """Return the unfilled pixels next to filled ones, in scan order: those next to the newest ones."""
    height, width = source.shape
    found = np.empty(8 * len(newest), dtype=np.int64)
    count = 0
    for pixel in newest:
        row, column = pixel // width, pixel % width
        for i in range(max(row - 1, 0), min(row + 2, height)):
            for j in range(max(column - 1, 0), min(column + 2, width)):
                if source[i, j] < 0:
                    found[count] = i * width + j
                    count += 1
    return np.unique(found[:count])


@njit(nogil=True, cache=True)
def _most_neighbours_first(source: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Sort pixels by their number of filled neighbours, keeping the order of those with as many."""
    height, width = source.shape
    empty = np.zeros(len(ring), dtype=np.int64)
    for n in range(len(ring)):
        row, column = ring[n] // width, ring[n] % width
        for i in range(row - 1, row + 2):
            for j in range(column - 1, column + 2):
                inside = 0 <= i < height and 0 <= j < width
                if not inside or source[i, j] < 0:
                    empty[n] += 1
    return ring[np.argsort(empty, kind="mergesort")]  # a stable sort


@njit(nogil=True, cache=True)
def _measure(
    source: np.ndarray,
    pixel: int,
    planes: np.ndarray,
    weights: np.ndarray,
    stride: int,
    first: int,
    distances: np.ndarray,
) -> None:
    """Add the distances of the known part of a pixel's window to all candidates' windows."""
    height, width = source.shape
    margin = len(weights) // 2
    row, column = pixel // width, pixel % width
    offsets = np.empty(weights.size, dtype=np.int64)
    values = np.empty((weights.size, 3), dtype=np.int32)
    tap_weights = np.empty(weights.size, dtype=np.int32)
    taps = 0
    for i in range(max(row - margin, 0), min(row + margin + 1, height)):
        for j in range(max(column - margin, 0), min(column + margin + 1, width)):
            if source[i, j] >= 0:
                offsets[taps] = (i - row) * stride + j - column
                for channel in range(3):
                    values[taps, channel] = planes[channel, source[i, j]]
                tap_weights[taps] = weights[i - row + margin, j - column + margin]
                taps += 1
    for begin in range(0, len(distances), RUN):
        run = distances[begin : begin + RUN]
        add_taps(planes, offsets[:taps], values, tap_weights, first + begin, run)


@njit(nogil=True, cache=True)
def _pick(distances: np.ndarray, epsilon: float, key: np.uint64, pixel: int) -> int:
    """Draw one of the candidates whose distance is at most 1 + epsilon times the smallest."""
    limit = np.int32(min(np.int64(distances.min() * (1 + epsilon)), np.int64(BARRIER) - 1))
    count = 0
    for k in range(len(distances)):
        count += distances[k] <= limit
    wanted = draw(key, pixel, count)
    choice = 0
    for k in range(len(distances)):
        if distances[k] <= limit:
            if wanted == 0:
                choice = k
                break
            wanted -= 1
    return choice
