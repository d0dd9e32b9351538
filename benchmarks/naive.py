"""Baselines for benchmarks/synthesis.py: two exhaustive methods as plain loops over all candidates and window pixels.

They measure the cost of the methods without optimisation on the same machine. Their pixels equal those of `efros-leung`
and of `wei-levoy` with one level.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit

from texturegen.texture.kernels.exemplar import stack
from texturegen.texture.kernels.rand import derive, draw, shuffle
from texturegen.texture.methods.efros_leung import quantised_gaussian


def naive_wei_levoy(patches: Sequence[np.ndarray], size: tuple[int, int], seed: int, window: int = 11) -> np.ndarray:
    """Return the source map int32 (H, W, 3) of Wei and Levoy's method at one resolution, causal window."""
    exemplar = stack(patches, 0)
    return _wei_levoy(exemplar.pixels, exemplar.sides, size, np.uint64(derive(np.uint64(seed), 0)), window // 2)


def naive_efros_leung(
    patches: Sequence[np.ndarray], size: tuple[int, int], seed: int, window: int = 7, epsilon: float = 0.1
) -> np.ndarray:
    """Return the source map int32 (H, W, 3) of Efros and Leung's method."""
    exemplar = stack(patches, 0)
    weights = quantised_gaussian(window)
    return _efros_leung(exemplar.pixels, exemplar.sides, size, np.uint64(seed), weights, epsilon)


@njit(nogil=True)
def _wei_levoy(pixels: np.ndarray, sides: np.ndarray, size: tuple[int, int], key: np.uint64, reach: int) -> np.ndarray:
    height, width = size
    source = np.empty((height, width, 3), dtype=np.int32)
    image = np.empty((height, width, 3), dtype=np.uint8)
    places = [(p, y, x) for p in range(len(sides)) for y in range(sides[p, 0]) for x in range(sides[p, 1])]
    for row in range(height):
        for column in range(width):
            p, y, x = places[draw(key, row * width + column, len(places))]
            image[row, column] = pixels[p, y, x]
    side = 2 * reach + 1
    window = np.empty((reach + 1, 3 * side), dtype=np.uint8)
    lines = pixels.reshape(pixels.shape[0], pixels.shape[1], -1)
    for row in range(height):
        for column in range(width):
            for i in range(reach + 1):
                for j in range(side):
                    window[i, 3 * j : 3 * j + 3] = image[(row + i - reach) % height, (column + j - reach) % width]
            least = np.int32(2**31 - 1)
            for p in range(len(sides)):
                for y in range(reach, sides[p, 0]):
                    for x in range(reach, sides[p, 1] - reach):
                        distance = np.int32(0)
                        for i in range(reach + 1):
                            taps = 3 * (side if i < reach else reach)
                            ours = window[i, :taps]
                            theirs = lines[p, y - reach + i, 3 * (x - reach) : 3 * (x - reach) + taps]
                            for k in range(taps):
                                difference = np.int32(np.int32(theirs[k]) - np.int32(ours[k]))
                                distance += np.int32(difference * difference)
                        if distance < least:
                            least = distance
                            source[row, column] = p, y, x
            p, y, x = source[row, column]
            image[row, column] = pixels[p, y, x]
    return source


@njit(nogil=True)
def _efros_leung(
    pixels: np.ndarray, sides: np.ndarray, size: tuple[int, int], key: np.uint64, weights: np.ndarray, epsilon: float
) -> np.ndarray:
    height, width = size
    reach = len(weights) // 2
    source = np.empty((height, width, 3), dtype=np.int32)
    image = np.empty((height, width, 3), dtype=np.uint8)
    filled = np.zeros((height, width), dtype=np.bool_)
    seed_key, pick_key, order_key = derive(key, 0), derive(key, 1), derive(key, 2)
    p = draw(seed_key, 0, len(sides))
    top, left = draw(seed_key, 1, sides[p, 0] - 2), draw(seed_key, 2, sides[p, 1] - 2)
    for i in range(3):
        for j in range(3):
            row, column = height // 2 - 1 + i, width // 2 - 1 + j
            if 0 <= row < height and 0 <= column < width:
                source[row, column] = p, top + i, left + j
                image[row, column] = pixels[p, top + i, left + j]
                filled[row, column] = True
    candidates = [
        (p, y, x)
        for p in range(len(sides))
        for y in range(reach, sides[p, 0] - reach)
        for x in range(reach, sides[p, 1] - reach)
    ]
    side = 2 * reach + 1
    window = np.zeros((side, 3 * side), dtype=np.uint8)
    known = np.zeros((side, 3 * side), dtype=np.int32)  # weights; 0 for pixels that are not filled yet
    lines = pixels.reshape(pixels.shape[0], pixels.shape[1], -1)
    distances = np.empty(len(candidates), dtype=np.int32)
    for number in range(max(height, width)):  # one ring per iteration
        neighbours = _count_neighbours(filled)
        ring = np.flatnonzero(neighbours)
        shuffle(ring, len(ring), derive(order_key, number))
        for wanted in range(8, 0, -1):
            for pixel in ring:
                row, column = pixel // width, pixel % width
                if neighbours[row, column] != wanted:
                    continue
                for i in range(side):
                    for j in range(side):
                        y, x = row + i - reach, column + j - reach
                        here = slice(3 * j, 3 * j + 3)
                        known[i, here] = 0
                        if 0 <= y < height and 0 <= x < width and filled[y, x]:
                            known[i, here] = weights[i, j]
                            window[i, here] = image[y, x]
                for c in range(len(candidates)):
                    p, y, x = candidates[c]
                    distance = np.int32(0)
                    for i in range(side):
                        theirs = lines[p, y - reach + i, 3 * (x - reach) : 3 * (x + reach + 1)]
                        ours, weight = window[i], known[i]
                        for k in range(3 * side):
                            difference = np.int32(np.int32(theirs[k]) - np.int32(ours[k]))
                            distance += np.int32(weight[k] * np.int32(difference * difference))
                    distances[c] = distance
                near = np.flatnonzero(distances <= distances.min() * (1 + epsilon))
                p, y, x = candidates[near[draw(pick_key, pixel, len(near))]]
                source[row, column] = p, y, x
                image[row, column] = pixels[p, y, x]
                filled[row, column] = True
    return source


@njit(nogil=True)
def _count_neighbours(filled: np.ndarray) -> np.ndarray:
    """Return int64 (H, W): the number of filled neighbours among eight, 0 for a filled pixel."""
    height, width = filled.shape
    counts = np.zeros((height, width), dtype=np.int64)
    for row in range(height):
        for column in range(width):
            if not filled[row, column]:
                for i in range(max(row - 1, 0), min(row + 2, height)):
                    for j in range(max(column - 1, 0), min(column + 2, width)):
                        counts[row, column] += filled[i, j]
    return counts
