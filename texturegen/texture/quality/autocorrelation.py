"""Normalised autocorrelation of the luminance, compared between a texture and its patches.

At each shift, it is the covariance of the pairs of pixels divided by the mean of their variances. All sums are exact,
because they are of integers.
"""

import numpy as np
from numba import njit

_SHIFT = 4
# The largest number of products of two luminances whose sum fits 32 bits.
_MAX_SUMMED = 2**31 // 255**2


@njit(nogil=True, cache=True)
def autocorrelation_distance(
    pixels: np.ndarray, sides: np.ndarray, texture_pixels: np.ndarray, texture_sides: np.ndarray
) -> float:
    """Return the mean absolute difference of the normalised autocorrelations at shifts of up to 4 pixels.

    The pixel pairs of all patches are pooled. Shifts without pairs in the patches or in the texture are skipped.

    Parameters
    ----------
    pixels : uint8 (M, 3), concatenated pixels of all patches.
    sides : int64 (P, 2), heights and widths of the patches.
    texture_pixels, texture_sides : the same for the texture.

    Returns
    -------
    0 .. 2; NaN if all shifts are skipped.
    """
    ours, theirs = _moments(texture_pixels, texture_sides), _moments(pixels, sides)
    total, known = 0.0, 0
    for down in range(_SHIFT + 1):
        for right in range(-_SHIFT, _SHIFT + 1):
            if (down, right) > (0, 0):
                difference = abs(_correlation(ours[down, right]) - _correlation(theirs[down, right]))
                if not np.isnan(difference):
                    total += difference
                    known += 1
    return total / known if known > 0 else np.nan


@njit(nogil=True, cache=True)
def _correlation(moments: np.ndarray) -> float:
    """Return the covariance over the variance of the pairs of pixels at one shift."""
    count, left, right, product, left_square, right_square = moments.astype(np.float64)
    if count == 0:
        return np.nan  # undefined without pairs
    variance = (count * left_square - left**2 + count * right_square - right**2) / 2
    # In a constant image, every pixel predicts its neighbours perfectly.
    return 1.0 if variance == 0 else (count * product - left * right) / variance


@njit(nogil=True, cache=True)
def _moments(pixels: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return sums over the pairs of pixels (a, b) at each shift: count, a, b, a * b, a * a, b * b.

    int64 (5, 9, 6), indexed by the shifts down and right; a negative index is a shift to the left.
    """
    moments = np.zeros((_SHIFT + 1, 2 * _SHIFT + 1, 6), dtype=np.int64)
    start = 0
    for height, width in sides:
        # Rows are zero-padded, so that pairs outside the image add 0 at any shift.
        stride = width + _SHIFT
        area = height * stride
        luminance = np.zeros(area + _SHIFT * stride + _SHIFT, dtype=np.int16)
        for row in range(height):
            _fill_luminance(pixels[start : start + width], luminance[row * stride : row * stride + width])
            start += width
        sums = _row_sums(luminance, height, width)
        for down in range(min(_SHIFT + 1, height)):
            for right in range(-min(_SHIFT, width - 1), min(_SHIFT + 1, width)):
                offset = down * stride + right
                if offset <= 0:
                    continue
                cell = moments[down, right]
                cell[0] += (height - down) * (width - abs(right))
                for power in range(2):
                    of_left, of_right = sums[:, right, power], sums[:, -right, power]
                    cell[1 + 3 * power] += of_left[height - down]
                    cell[2 + 3 * power] += of_right[height] - of_right[down]
                for first in range(0, area, _MAX_SUMMED):
                    last = min(first + _MAX_SUMMED, area)
                    cell[3] += _dot(luminance[first:last], luminance[first + offset : last + offset])
    return moments


@njit(nogil=True, cache=True)
def _fill_luminance(pixels: np.ndarray, luminance: np.ndarray) -> None:
    for k in range(len(pixels)):
        red, green, blue = np.uint32(pixels[k, 0]), np.uint32(pixels[k, 1]), np.uint32(pixels[k, 2])
        luminance[k] = np.uint32(299 * red + 587 * green + 114 * blue + 500) // np.uint32(1000)


@njit(nogil=True, cache=True)
def _row_sums(luminance: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return sums over the first n rows of the pixels that stay inside the image under each horizontal shift.

    int64 (H+1, 9, 2), indexed by n, the shift to the right (negative: to the left), and the power minus 1.
    """
    sums = np.zeros((height + 1, 2 * _SHIFT + 1, 2), dtype=np.int64)
    for row in range(height):
        line = luminance[row * (width + _SHIFT) : row * (width + _SHIFT) + width]
        total, squares = 0, 0
        for k in range(width):
            total += line[k]
            squares += line[k] * line[k]
        for k in range(2 * _SHIFT + 1):
            for power in range(2):
                sums[row + 1, k, power] = sums[row, k, power]
        sums[row + 1, 0, 0] += total
        sums[row + 1, 0, 1] += squares
        for side in (1, -1):
            kept, kept_squares = total, squares
            for shift in range(1, min(_SHIFT + 1, width)):
                edge = int(line[width - shift] if side > 0 else line[shift - 1])
                kept -= edge
                kept_squares -= edge * edge
                sums[row + 1, side * shift, 0] += kept
                sums[row + 1, side * shift, 1] += kept_squares
    return sums


@njit(nogil=True, cache=True)
def _dot(left: np.ndarray, right: np.ndarray) -> np.int32:
    total = np.int32(0)
    for k in range(len(left)):
        total = np.int32(total + np.int32(np.int32(left[k]) * np.int32(right[k])))
    return total
