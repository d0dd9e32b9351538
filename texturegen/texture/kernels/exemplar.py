"""Exemplars: check patches, reduce them to pyramids, and lay them out for the kernels.

Pyramid levels are uint8. Window distances are therefore exact integers, and no result depends on the order of a sum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numba import njit

from texturegen.errors import UserError


class Stack(NamedTuple):
    """The patches of one level in one array, each with a reflected border.

    A flat index into (P, H, W) identifies a source pixel. The index of the pixel below it is larger by W.
    """

    pixels: np.ndarray  # uint8 (P, H, W, 3); a patch starts at row and column `border`
    sides: np.ndarray  # int64 (P, 2): height and width of every patch
    border: int  # in pixels

    @property
    def stride(self) -> int:
        """Difference between the flat indices of a pixel and the one below it."""
        return self.pixels.shape[2]


def check_sides(patches: Sequence[np.ndarray], window: int, levels: int = 1, unit: str = "window") -> None:
    """Raise UserError if a side of a patch is shorter than a window at the coarsest level.

    Parameters
    ----------
    patches : uint8 (h, w, 3) arrays.
    window : side of a window in pixels.
    levels : levels of the pyramid, each of which halves the sides, rounding up.
    unit : the method's setting for the side of a window, for the message.
    """
    least = (window - 1) * 2 ** (levels - 1) + 1
    for number, patch in enumerate(patches):
        if min(patch.shape[:2]) < least:
            at = f" at {levels} levels" if levels > 1 else ""
            ways = f"a smaller {unit} or fewer levels" if unit == "window" else f"or a smaller {unit}"
            raise UserError(
                f"patch {number} is {patch.shape[0]}x{patch.shape[1]} pixels, too small for {unit}s of "
                f"{window}x{window}{at}; use patches with sides of {least} or more, {ways}"
            )


def pyramid(patches: Sequence[np.ndarray], levels: int) -> list[list[np.ndarray]]:
    """Return the patches at `levels` resolutions, finest first; each level halves the sides, rounding up.

    Patches are smoothed with the binomial kernel 1 4 6 4 1 before every second pixel is dropped (Burt and Adelson, "The
    Laplacian pyramid as a compact image code", IEEE Transactions on Communications 31(4), 1983).
    """
    result = [list(patches)]
    for _ in range(levels - 1):
        result.append([halve(patch) for patch in result[-1]])
    return result


def halve(image: np.ndarray) -> np.ndarray:
    """Return an image uint8 (h, w, 3) at half the resolution: one step of `pyramid`.

    The result equals that of cv2.pyrDown, which takes longer to start its threads than to reduce a small patch.
    """
    return _halve(cv2.copyMakeBorder(image, 2, 2, 2, 2, cv2.BORDER_REFLECT_101))


def count_levels(patches: Sequence[np.ndarray], least: int) -> int:
    """Return the largest number of pyramid levels at which all sides have `least` pixels or more; at least 1."""
    side = min(min(patch.shape[:2]) for patch in patches)
    levels = 1
    while (side + 1) // 2 >= least:
        side = (side + 1) // 2
        levels += 1
    return levels


def level_sizes(size: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    """Return the size (H, W) of the output at each level, finest first, halved like the patches."""
    result = [size]
    for _ in range(levels - 1):
        height, width = result[-1]
        result.append(((height + 1) // 2, (width + 1) // 2))
    return result


def stack(patches: Sequence[np.ndarray], border: int) -> Stack:
    """Return the patches of one level as a `Stack`; their sides must exceed `border`."""
    sides = np.array([patch.shape[:2] for patch in patches], dtype=np.int64)
    height, width = (int(side) for side in sides.max(axis=0))
    pixels = np.zeros((len(patches), height + 2 * border, width + 2 * border, 3), dtype=np.uint8)
    for target, patch in zip(pixels, patches, strict=True):
        bordered = cv2.copyMakeBorder(patch, border, border, border, border, cv2.BORDER_REFLECT_101)
        target[: bordered.shape[0], : bordered.shape[1]] = bordered
    return Stack(pixels, sides, border)


def interior(exemplar: Stack) -> np.ndarray:
    """Return bool (P, H, W): True for the pixels of patches, False for borders and padding."""
    result = np.zeros(exemplar.pixels.shape[:3], dtype=np.bool_)
    skip = exemplar.border
    for patch, (height, width) in zip(result, exemplar.sides, strict=True):
        patch[skip : skip + height, skip : skip + width] = True
    return result


@njit(nogil=True, cache=True)
def unflatten(flat: np.ndarray, exemplar: Stack) -> np.ndarray:
    """Convert flat indices (H, W) into a source map int32 (H, W, 3) of (patch, row, column)."""
    height, width = flat.shape
    rows, stride = exemplar.pixels.shape[1:3]
    source = np.empty((height, width, 3), dtype=np.int32)
    for i in range(height):
        for j in range(width):
            line, column = divmod(flat[i, j], stride)
            patch, row = divmod(line, rows)
            source[i, j, 0] = patch
            source[i, j, 1] = row - exemplar.border
            source[i, j, 2] = column - exemplar.border
    return source


@njit(nogil=True, cache=True)
def _halve(bordered: np.ndarray) -> np.ndarray:
    height, width = (bordered.shape[0] - 3) // 2, (bordered.shape[1] - 3) // 2
    lines = bordered.reshape(bordered.shape[0], -1)
    result = np.empty((height, width, 3), dtype=np.uint8)
    sums = np.empty(lines.shape[1], dtype=np.int32)
    for row in range(height):
        first, second, third = lines[2 * row], lines[2 * row + 1], lines[2 * row + 2]
        fourth, fifth = lines[2 * row + 3], lines[2 * row + 4]
        for k in range(len(sums)):
            outer, inner = np.int32(first[k]) + np.int32(fifth[k]), np.int32(second[k]) + np.int32(fourth[k])
            sums[k] = np.int32(outer + np.int32(4) * inner + np.int32(6) * np.int32(third[k]))
        for column in range(width):
            for channel in range(3):
                at = 6 * column + channel
                outer, inner = sums[at] + sums[at + 12], sums[at + 3] + sums[at + 9]
                result[row, column, channel] = (outer + 4 * inner + 6 * sums[at + 6] + 128) // 256
    return result
