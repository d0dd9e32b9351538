"""Efros and Leung, "Texture synthesis by non-parametric sampling", ICCV 1999.

The texture grows pixel by pixel from a 3x3 seed, as in the authors' pseudo-code ("Texture Synthesis Algorithm
Details"). Two parts are omitted: the error threshold of 0.3, which only defers a pixel to a later round, and the
normalisation of the distance by the weights of the known pixels, which is equal for all candidates of a pixel.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from numba import njit

from texturegen.texture.kernels.exemplar import Stack, check_sides, stack, unflatten
from texturegen.texture.kernels.rand import derive, draw, shuffle
from texturegen.texture.kernels.windows import BARRIER, MAX_WEIGHT, RUN, add_taps, barrier, planes
from texturegen.texture.settings import Integer, Real

# A call counts the references of all arrays passed, so functions called for every output pixel are inlined.

# Taps added to a run of candidates at a time. Once only one in _FEW candidates is left, they are finished singly.
_TAPS_AT_ONCE = 6
_FEW = 64
# Output pixels without a source: not filled yet, and outside the output.
_EMPTY, _OUTSIDE = -1, -2


def efros_leung(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    seed: int,
    *,
    window: Annotated[int, Integer(3, 31, odd=True)] = 7,
    epsilon: Annotated[float, Real(0, 10)] = 0.1,
) -> np.ndarray:
    """Return the source map of a texture grown from a 3x3 seed at its centre, by non-parametric sampling.

    Parameters
    ----------
    patches : uint8 (h, w, 3) arrays.
    size : (H, W) of the texture in pixels.
    seed : seed of all random choices.
    window : side of the neighbourhood in pixels. The paper uses 5 to 23, depending on the scale of the texture. A patch
        of 16x16 pixels has 100 candidates for a window of 7, but only 36 for one of 11.
    epsilon : a pixel is drawn from all candidates whose distance is at most 1 + epsilon times the smallest.

    Returns
    -------
    int32 (H, W, 3), (patch, row, column) of every pixel.

    Raises
    ------
    UserError : a patch is smaller than a window.
    """
    check_sides(patches, window)
    exemplar = stack(patches, 0)
    return unflatten(_grow(_lay_out(exemplar, window), exemplar.sides, size, epsilon, np.uint64(seed)), exemplar)


class _Exemplar(NamedTuple):
    """Candidates, indexed by flat position in the stack of patches, and the taps of a window."""

    planes: np.ndarray  # uint8 (3, M)
    start: np.ndarray  # int32 (M,): 0 at candidates, else BARRIER
    first: int  # the first candidate
    last: int  # the last candidate
    rows: int  # rows of a patch in the stack
    stride: int
    margin: int  # pixels of a window on each side of its centre
    steps: np.ndarray  # int64 (T, 2): (down, right) to the pixels of a window, by decreasing weight
    offsets: np.ndarray  # int64 (T,): the same steps in the stack
    weights: np.ndarray  # int32 (T,)


class _Window(NamedTuple):
    """Scratch memory for the known pixels of one output pixel's window, and for a run of distances."""

    offsets: np.ndarray  # int64 (T,): in the stack
    values: np.ndarray  # int32 (T, 3)
    weights: np.ndarray  # int32 (T,)
    distances: np.ndarray  # int32 (RUN,)


def _lay_out(exemplar: Stack, window: int) -> _Exemplar:
    margin = window // 2
    start = barrier(exemplar, margin, margin, margin, margin)
    candidates = np.flatnonzero(start == 0)
    weights = quantised_gaussian(window).reshape(-1)
    order = np.argsort(-weights, kind="stable")[1:]  # the first is the centre, which is never known
    steps = np.stack([order // window - margin, order % window - margin], axis=1)
    rows, stride = exemplar.pixels.shape[1:3]
    first, last = int(candidates[0]), int(candidates[-1])
    offsets = steps[:, 0] * stride + steps[:, 1]
    return _Exemplar(planes(exemplar.pixels), start, first, last, rows, stride, margin, steps, offsets, weights[order])


def quantised_gaussian(window: int) -> np.ndarray:
    """Return Gaussian weights int32 (window, window), sigma = window / 6.4.

    Integers make distances exact. They are as large as int32 sums allow, and all positive, so that no known pixel is
    ignored.
    """
    across = np.arange(window) - window // 2
    square = across[:, None] ** 2 + across[None, :] ** 2
    weights = np.exp(-square / (2 * (window / 6.4) ** 2))
    scale = (MAX_WEIGHT - window * window) / weights.sum()
    return np.maximum(np.floor(weights * scale), 1).astype(np.int32)


@njit(nogil=True, cache=True)
def _grow(exemplar: _Exemplar, sides: np.ndarray, size: tuple[int, int], epsilon: float, key: np.uint64) -> np.ndarray:
    """Return flat source positions int32 (H, W)."""
    height, width = size
    margin = exemplar.margin
    # A margin avoids testing whether a window leaves the output.
    padded = np.full((height + 2 * margin, width + 2 * margin), _OUTSIDE, dtype=np.int32)
    padded[margin : margin + height, margin : margin + width] = _EMPTY
    source, stride = padded.reshape(-1), padded.shape[1]
    centre = (margin + height // 2) * stride + margin + width // 2
    newest = _plant(source, stride, centre, sides, exemplar, derive(key, 0))
    pick_key, round_key = derive(key, 1), derive(key, 2)
    steps = exemplar.steps[:, 0] * stride + exemplar.steps[:, 1]
    taps = len(steps)
    scratch = _Window(
        np.empty(taps, dtype=np.int64),
        np.empty((taps, 3), dtype=np.int32),
        np.empty(taps, dtype=np.int32),
        np.empty(RUN, dtype=np.int32),
    )
    near = np.empty((2, exemplar.last - exemplar.first + 1), dtype=np.int32)
    number = 0
    while len(newest) > 0:
        ring = _ring(source, stride, newest)
        shuffle(ring, len(ring), derive(round_key, number))
        for pixel in _most_neighbours_first(source, stride, ring):
            known = _gather(source, pixel, steps, exemplar, scratch)
            window = _Window(
                scratch.offsets[:known], scratch.values[:known], scratch.weights[:known], scratch.distances
            )
            least = _continue_neighbours(source, stride, pixel, exemplar, window)
            count = _near(exemplar, window, least, epsilon, near)
            index = (pixel // stride - margin) * width + pixel % stride - margin
            source[pixel] = near[0, draw(pick_key, index, count)]
        newest = ring
        number += 1
    return padded[margin : margin + height, margin : margin + width]


@njit(nogil=True, cache=True)
def _plant(
    source: np.ndarray, stride: int, centre: int, sides: np.ndarray, exemplar: _Exemplar, key: np.uint64
) -> np.ndarray:
    """Copy 3x3 pixels from a random position to the centre; return the filled output pixels."""
    patch = draw(key, 0, len(sides))
    top, left = draw(key, 1, sides[patch, 0] - 2), draw(key, 2, sides[patch, 1] - 2)
    filled = []
    for i in range(3):
        for j in range(3):
            pixel = centre + (i - 1) * stride + j - 1
            if source[pixel] == _EMPTY:
                source[pixel] = (patch * exemplar.rows + top + i) * exemplar.stride + left + j
                filled.append(pixel)
    return np.array(filled)


@njit(nogil=True, cache=True)
def _ring(source: np.ndarray, stride: int, newest: np.ndarray) -> np.ndarray:
    """Return the unfilled pixels next to filled ones, in scan order; all of them are next to the newest ones."""
    found = np.empty(8 * len(newest), dtype=np.int64)
    count = 0
    for pixel in newest:
        for down in range(-1, 2):
            for right in range(-1, 2):
                neighbour = pixel + down * stride + right
                if source[neighbour] == _EMPTY:
                    found[count] = neighbour
                    count += 1
    return np.unique(found[:count])


@njit(nogil=True, cache=True)
def _most_neighbours_first(source: np.ndarray, stride: int, ring: np.ndarray) -> np.ndarray:
    """Return pixels sorted by decreasing number of filled neighbours, with a stable sort."""
    missing = np.zeros(len(ring), dtype=np.int64)
    for n in range(len(ring)):
        for down in range(-1, 2):
            for right in range(-1, 2):
                missing[n] += source[ring[n] + down * stride + right] < 0
    return ring[np.argsort(missing, kind="mergesort")]  # stable


@njit(nogil=True, cache=True, inline="always")
def _gather(source: np.ndarray, pixel: int, steps: np.ndarray, exemplar: _Exemplar, window: _Window) -> int:
    """Write the known pixels of an output pixel's window, in the order of the taps; return their count."""
    known = 0
    for tap in range(len(steps)):
        position = source[pixel + steps[tap]]
        if position >= 0:
            window.offsets[known] = exemplar.offsets[tap]
            window.weights[known] = exemplar.weights[tap]
            for channel in range(3):
                window.values[known, channel] = exemplar.planes[channel, position]
            known += 1
    return known


@njit(nogil=True, cache=True, inline="always")
def _near(exemplar: _Exemplar, window: _Window, least: np.int32, epsilon: float, near: np.ndarray) -> int:
    """Find the candidates whose distance is at most 1 + epsilon times the smallest; return their count.

    Ascending positions and their distances are written to near, int32 (2, n). least : the distance of some candidate,
    or BARRIER. A candidate whose sum over the heaviest taps exceeds the limit is dropped early, which does not change
    the result. Taps are added to runs of candidates, which vectorises, until few are left to finish singly.
    """
    planes, offsets, values, weights = exemplar.planes, window.offsets, window.values, window.weights
    limit = _limit(least, epsilon)
    found = 0
    for begin in range(exemplar.first, exemplar.last + 1, RUN):
        run = window.distances[: min(RUN, exemplar.last + 1 - begin)]
        start = exemplar.start[begin : begin + len(run)]
        for k in range(len(run)):  # several times faster than assigning the slice
            run[k] = start[k]
        done = 0
        left = len(run)
        while done < len(window.offsets) and left * _FEW > len(run):
            now = slice(done, done + _TAPS_AT_ONCE)
            add_taps(exemplar.planes, window.offsets[now], window.values[now], window.weights[now], begin, run)
            done += _TAPS_AT_ONCE
            left = _count_within(run, limit)
        if left == 0:
            continue
        for k in range(len(run)):
            if run[k] <= limit:
                distance = _finish(planes, offsets, values, weights, done, begin + k, run[k], limit)
                if distance <= limit:
                    near[0, found], near[1, found] = begin + k, distance
                    found += 1
                    if distance < least:
                        least = distance
                        limit = _limit(least, epsilon)
    # The limit may have decreased since a candidate was found.
    kept = 0
    for k in range(found):
        if near[1, k] <= limit:
            near[0, kept], near[1, kept] = near[0, k], near[1, k]
            kept += 1
    return kept


@njit(nogil=True, cache=True)
def _limit(least: np.int32, epsilon: float) -> np.int32:
    return np.int32(min(np.int64(least * (1 + epsilon)), np.int64(BARRIER) - 1))


@njit(nogil=True, cache=True)
def _count_within(distances: np.ndarray, limit: np.int32) -> int:
    count = np.int32(0)
    for k in range(len(distances)):
        count += np.int32(distances[k] <= limit)
    return int(count)


@njit(nogil=True, cache=True)
def _finish(
    planes: np.ndarray,
    offsets: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    done: int,
    position: int,
    distance: np.int32,
    limit: np.int32,
) -> np.int32:
    """Add the taps from `done` on to the distance of one candidate, until it exceeds the limit."""
    for tap in range(done, len(offsets)):
        if distance > limit:
            break
        tapped = position + offsets[tap]
        total = np.int32(0)
        for channel in range(3):
            difference = np.int32(np.int32(planes[channel, tapped]) - values[tap, channel])
            total += np.int32(difference * difference)
        distance += np.int32(weights[tap] * total)
    return distance


@njit(nogil=True, cache=True, inline="always")
def _continue_neighbours(source: np.ndarray, stride: int, pixel: int, exemplar: _Exemplar, window: _Window) -> np.int32:
    """Return the smallest distance of candidates that continue a filled neighbour's source; BARRIER if there is none.

    It is close to the overall minimum, so few candidates need all their taps.
    """
    planes, offsets, values, weights = exemplar.planes, window.offsets, window.values, window.weights
    nearest, least = -1, BARRIER
    for down in range(-1, 2):
        for right in range(-1, 2):
            neighbour = source[pixel + down * stride + right]
            position = neighbour - down * exemplar.stride - right
            # Neighbours copied together are continued by the same candidate.
            if neighbour < 0 or position == nearest or not 0 <= position < len(exemplar.start):
                continue
            if exemplar.start[position] == 0:
                distance = _finish(planes, offsets, values, weights, 0, position, np.int32(0), least)
                if distance < least:
                    nearest, least = position, distance
    return least
