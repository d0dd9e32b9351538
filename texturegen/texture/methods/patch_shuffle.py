"""Patch-based negatives: square cells from random positions, placed side by side.

Ge et al., "Robust contrastive learning using negative samples with diminished semantics", NeurIPS 2021. The paper cuts
the cells from the whole image; here they come from the given patches.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numba import njit

from texturegen.errors import UserError
from texturegen.texture.kernels.exemplar import check_sides
from texturegen.texture.kernels.rand import derive, draw
from texturegen.texture.settings import Integer

# The paper uses cells of 16 to 72 pixels in images of 224 pixels.
_PAPER_SMALLEST, _PAPER_LARGEST, _PAPER_SIDE = 16, 72, 224
_MIN_CELL = 4  # smaller cells show noise instead of texture


def patch_shuffle(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    seed: int,
    *,
    smallest: Annotated[int | None, Integer(1, 1024, automatic=True)] = None,
    largest: Annotated[int | None, Integer(1, 1024, automatic=True)] = None,
) -> np.ndarray:
    """Return the source map of an image covered with square cells, cropped in the last row and column.

    Parameters
    ----------
    patches : uint8 (h, w, 3) arrays.
    size : (H, W) of the texture in pixels.
    seed : seed of all random choices.
    smallest, largest : range in pixels from which the side of all cells of a texture is drawn. None for 16/224 and
        72/224 of the output's short side, at least 4, limited by the patches and the other setting.

    Returns
    -------
    int32 (H, W, 3), (patch, row, column) of every pixel.

    Raises
    ------
    UserError : a patch is smaller than the largest cell, or smallest > largest.
    """
    side = min(min(patch.shape[:2]) for patch in patches)
    if smallest is None:
        smallest = min(max(round(min(size) * _PAPER_SMALLEST / _PAPER_SIDE), _MIN_CELL), side, largest or side)
    if largest is None:
        largest = max(min(round(min(size) * _PAPER_LARGEST / _PAPER_SIDE), side), smallest)
    if smallest > largest:
        raise UserError(
            f"setting 'smallest' of method 'patch-shuffle' is {smallest}, above 'largest', {largest}; lower it"
        )
    check_sides(patches, largest, unit="cell")
    sides = np.array([patch.shape[:2] for patch in patches], dtype=np.int64)
    key = np.uint64(seed)
    cell = smallest + draw(np.uint64(derive(key, 0)), 0, largest - smallest + 1)
    return _tile(sides, size[0], size[1], cell, np.uint64(derive(key, 1)))


@njit(nogil=True, cache=True)
def _tile(sides: np.ndarray, height: int, width: int, cell: int, key: np.uint64) -> np.ndarray:
    source = np.empty((height, width, 3), dtype=np.int32)
    number = 0
    for top in range(0, height, cell):
        for left in range(0, width, cell):
            patch = draw(key, 3 * number, len(sides))
            row = draw(key, 3 * number + 1, sides[patch, 0] - cell + 1)
            column = draw(key, 3 * number + 2, sides[patch, 1] - cell + 1)
            number += 1
            for i in range(top, min(top + cell, height)):
                for j in range(left, min(left + cell, width)):
                    source[i, j, 0] = patch
                    source[i, j, 1] = row + i - top
                    source[i, j, 2] = column + j - left
    return source
