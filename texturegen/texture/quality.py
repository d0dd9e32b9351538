"""How good is a texture: five figures against the patches it was made from, lower being better for each.

Coherence and completeness are the two terms of bidirectional similarity (Simakov, Caspi, Shechtman, Irani:
"Summarizing visual data using bidirectional similarity", CVPR 2008, section 2). The five go together: a plain tiling
of a patch wins every one but `verbatim`, and shuffled pixels win only `histogram` and `verbatim`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from texturegen.errors import UserError
from texturegen.texture.exemplar import stack
from texturegen.texture.patches import read_patches
from texturegen.texture.rand import derive, shuffle
from texturegen.texture.windows import BARRIER, RUN, add_taps, barrier, planes

WINDOW = 7
_BLOCK = 2  # side of the blocks whose sums bound a window's distance
_BLOCKS_AT = (0, 2, 5)  # where in a window they start, down and across
_SHIFT = 4  # autocorrelation is compared at shifts of up to so many pixels


@dataclass(frozen=True)
class Quality:
    """Figures of one texture; NaN where one is not defined (an image smaller than a 7x7 window).

    histogram: Wasserstein-1 distance of the colour histograms, mean of the channels, in grey levels (0 .. 255).
    autocorrelation: mean absolute difference of the luminance's normalised autocorrelation at small shifts (0 .. 2).
    coherence: mean distance of a texture window to the nearest patch window, RMS grey levels (0 .. 255).
    completeness: mean distance of a patch window to the nearest texture window, RMS grey levels (0 .. 255).
    verbatim: share of horizontally adjacent texture windows whose nearest patch windows are adjacent too (0 .. 1).
    """

    histogram: float
    autocorrelation: float
    coherence: float
    completeness: float
    verbatim: float


def measure(patches: Sequence[np.ndarray], texture: np.ndarray, seed: int = 0, samples: int = 16) -> Quality:
    """Compare a texture uint8 (H, W, 3) with its patches uint8 (h, w, 3).

    Coherence, completeness and verbatim look at `samples` windows (pairs of windows for verbatim), drawn by `seed`
    without repetition; as many as there are windows, or more, means all of them. Patches smaller than a window
    are left out of these three.

    Raises UserError where an image is not uint8 RGB, or for less than one sample.
    """
    if samples < 1:
        raise UserError(f"samples is {samples}: at least one window is needed")
    (image,) = read_patches([texture])
    copies = read_patches(patches)
    coherence, completeness, verbatim = _window_figures(copies, image, np.uint64(seed), samples)
    return Quality(
        histogram=_histogram_distance(copies, image),
        autocorrelation=_autocorrelation_distance(copies, image),
        coherence=coherence,
        completeness=completeness,
        verbatim=verbatim,
    )


def _histogram_distance(patches: Sequence[np.ndarray], image: np.ndarray) -> float:
    mine = np.cumsum(_count_colours(image), axis=1) / (image.size / 3)
    theirs = np.cumsum(np.sum([_count_colours(patch) for patch in patches], axis=0), axis=1)
    theirs = theirs / (sum(patch.size for patch in patches) / 3)
    return float(np.abs(mine - theirs).sum(axis=1).mean())


def _autocorrelation_distance(patches: Sequence[np.ndarray], image: np.ndarray) -> float:
    shifts = [(dy, dx) for dy in range(_SHIFT + 1) for dx in range(-_SHIFT, _SHIFT + 1) if (dy, dx) > (0, 0)]
    vectors = np.array(shifts, dtype=np.int64)
    mine = _correlation(_moments(image, vectors))
    theirs = _correlation(np.sum([_moments(patch, vectors) for patch in patches], axis=0))
    both = ~(np.isnan(mine) | np.isnan(theirs))
    return float(np.abs(mine - theirs)[both].mean()) if both.any() else float("nan")


def _correlation(moments: np.ndarray) -> np.ndarray:
    """Covariance over variance of the pixel pairs at every shift, int64 (S, 6) -> float64 (S,)."""
    count, left, right, product, left_square, right_square = moments.T.astype(np.float64)
    covariance = count * product - left * right
    variance = (count * left_square - left**2 + count * right_square - right**2) / 2
    # Without variance every pixel says all about its neighbours; without pairs nothing is known.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count == 0, np.nan, np.where(variance == 0, 1.0, covariance / variance))


def _window_figures(
    patches: Sequence[np.ndarray], image: np.ndarray, key: np.uint64, samples: int
) -> tuple[float, float, float]:
    large = [patch for patch in patches if min(patch.shape[:2]) >= WINDOW]
    if not large or min(image.shape[:2]) < WINDOW:
        return float("nan"), float("nan"), float("nan")
    exemplar, output = _lay_out(large), _lay_out([image])
    to_exemplar, adjacent = _nearest_windows(output, exemplar, samples, np.uint64(derive(key, 0)))
    to_output, _ = _nearest_windows(exemplar, output, samples, np.uint64(derive(key, 1)))
    known = adjacent[adjacent >= 0]
    return (
        float(np.sqrt(to_exemplar / (3 * WINDOW**2)).mean()),
        float(np.sqrt(to_output / (3 * WINDOW**2)).mean()),
        float(known.mean()) if len(known) else float("nan"),
    )


class _Side(NamedTuple):
    """One side of a window comparison. A window is named by its top left corner, a flat position."""

    pixels: np.ndarray  # uint8 (3*M,)
    blocks: np.ndarray  # int16 (3, M): sum of the block whose corner is here
    barrier: np.ndarray  # int32 (M,): 0 at the corners of windows, else BARRIER
    block_offsets: np.ndarray  # int64 (9,): corners of blocks in a window that do not overlap
    stride: int


def _lay_out(images: Sequence[np.ndarray]) -> _Side:
    layout = stack(images, 0)
    colours = planes(layout.pixels)
    width = layout.stride
    blocks = np.zeros(colours.shape, dtype=np.int16)
    inner = blocks[:, : -width - 1]
    for offset in _grid(range(_BLOCK), width):
        inner += colours[:, offset : offset + inner.shape[1]]
    corners = barrier(layout, 0, WINDOW - 1, 0, WINDOW - 1)
    return _Side(layout.pixels.reshape(-1), blocks, corners, _grid(_BLOCKS_AT, width), width)


def _grid(places: Iterable[int], stride: int) -> np.ndarray:
    return np.array([row * stride + column for row in places for column in places], dtype=np.int64)


@njit(nogil=True, cache=True)
def _nearest_windows(side: _Side, other: _Side, samples: int, key: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Look up the nearest other window of a sample of windows.

    Returns the squared distances int64 (n,) and, int64 (n,), whether the next window to the right has its nearest one
    right of this one's: 1 or 0, or -1 where there is no window to the right.
    """
    windows = np.flatnonzero(side.barrier == 0)
    count = min(samples, len(windows))
    shuffle(windows, count, key)
    distances = np.empty(count, dtype=np.int64)
    adjacent = np.full(count, -1, dtype=np.int64)
    bounds = np.empty(len(other.barrier) - (WINDOW - 1) * (other.stride + 1), dtype=np.int32)
    for n in range(count):
        corner = windows[n]
        here, distances[n] = _nearest(side, corner, other, bounds)
        if corner + 1 < len(side.barrier) and side.barrier[corner + 1] == 0:
            there, _ = _nearest(side, corner + 1, other, bounds)
            adjacent[n] = there == here + 1
    return distances, adjacent


@njit(nogil=True, cache=True)
def _nearest(side: _Side, corner: int, other: _Side, bounds: np.ndarray) -> tuple[int, int]:
    """Return position and squared distance of the nearest other window, the first one among equals."""
    values = np.empty((len(side.block_offsets), 3), dtype=np.int32)
    for tap in range(len(values)):
        for channel in range(3):
            values[tap, channel] = side.blocks[channel, corner + side.block_offsets[tap]]
    # By Cauchy-Schwarz the squared difference of two blocks' sums is at most 4 times the blocks' squared distance:
    # it bounds a window's distance from below, and only windows within the best so far need be looked at.
    bounds[:] = other.barrier[: len(bounds)]
    weights = np.ones(len(values), dtype=np.int32)
    for start in range(0, len(bounds), RUN):
        run = bounds[start : start + RUN]
        add_taps(other.blocks, other.block_offsets, values, weights, start, run)
    best = int(np.argmin(bounds))
    least = _distance(side, corner, other, best, int(BARRIER))
    for position in range(len(bounds)):
        if bounds[position] <= _BLOCK**2 * least and bounds[position] < BARRIER:
            distance = _distance(side, corner, other, position, least)
            if distance < least or (distance == least and position < best):
                best, least = position, distance
    return best, least


@njit(nogil=True, cache=True)
def _distance(side: _Side, corner: int, other: _Side, position: int, limit: int) -> int:
    """Return the squared distance of two windows, or, if that is above `limit`, something above `limit`."""
    total = np.int32(0)
    for row in range(WINDOW):
        start, other_start = 3 * (corner + row * side.stride), 3 * (position + row * other.stride)
        ours = side.pixels[start : start + 3 * WINDOW]
        theirs = other.pixels[other_start : other_start + 3 * WINDOW]
        for k in range(3 * WINDOW):
            difference = np.int32(np.int32(ours[k]) - np.int32(theirs[k]))
            total += np.int32(difference * difference)
        if total > limit:
            break
    return int(total)


@njit(nogil=True, cache=True)
def _count_colours(image: np.ndarray) -> np.ndarray:
    counts = np.zeros((3, 256), dtype=np.int64)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            for channel in range(3):
                counts[channel, image[row, column, channel]] += 1
    return counts


@njit(nogil=True, cache=True)
def _moments(image: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Sums over the pairs of pixels (a, b = a + shift), int64 (S, 6): count, a, b, a * b, a * a, b * b."""
    height, width = image.shape[:2]
    luminance = np.empty((height, width), dtype=np.int32)
    for row in range(height):
        for column in range(width):
            red, green, blue = image[row, column]
            luminance[row, column] = (299 * red + 587 * green + 114 * blue + 500) // 1000
    sums = np.zeros((len(shifts), 6), dtype=np.int64)
    for n in range(len(shifts)):
        down, right = shifts[n]
        for row in range(height - down):
            left, wide = max(0, -right), width - abs(right)
            first = luminance[row, left : left + wide]
            second = luminance[row + down, left + right : left + right + wide]
            if wide <= 0:
                continue
            a, b, ab, aa, bb = 0, 0, 0, 0, 0
            for k in range(wide):
                a += first[k]
                b += second[k]
                ab += first[k] * second[k]
                aa += first[k] * first[k]
                bb += second[k] * second[k]
            sums[n, 0] += wide
            sums[n, 1] += a
            sums[n, 2] += b
            sums[n, 3] += ab
            sums[n, 4] += aa
            sums[n, 5] += bb
    return sums
