"""Wang tiles: Cohen, Shade, Hiller and Deussen, "Wang tiles for image and texture generation", SIGGRAPH 2003.

Every edge of a square tile has a colour, and adjacent tiles have the same colour at their common edge. Each colour
represents a square sample of the patches. A tile is composed of parts of the samples of its four edges, merged along
the diagonals by minimum error cuts (section 3.2). Each edge divides a diamond of its sample, so pixels continue across
it as in the patch. Several random sets of samples are tried, and the set with the cheapest cuts is used.

The tile set is complete: it has a tile for every combination of four colours. The colours of the edges in a stochastic
tiling can therefore be drawn independently, and can be made to match around the output.

The SACL paper cites Han et al., "Wang tile based geometric texture synthesis", Journal of Software 20(12), 2009, which
fills such tiles with geometry instead of images.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numba import njit

from texturegen.errors import UserError
from texturegen.texture.kernels.cut import accumulate, trace
from texturegen.texture.kernels.exemplar import Stack, check_sides, stack, unflatten
from texturegen.texture.kernels.rand import derive, draw
from texturegen.texture.settings import Integer

_MIN_TILE, _MAX_TILE = 4, 256
_NO_PATH = np.int64(1 << 40)  # more than any cut costs


def wang_tiles(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    seed: int,
    *,
    tile: Annotated[int | None, Integer(_MIN_TILE, _MAX_TILE, automatic=True)] = None,
    colors: Annotated[int, Integer(1, 8)] = 4,
    tries: Annotated[int, Integer(1, 1000)] = 8,
) -> np.ndarray:
    """Return the source map of a random tiling with Wang tiles.

    The texture tiles if its sides are multiples of the tile's side.

    Parameters
    ----------
    patches : uint8 (h, w, 3) arrays.
    size : (H, W) of the texture in pixels.
    seed : seed of all random choices.
    tile : side of a tile and of the samples in pixels, even; None for two thirds of the smallest side of the patches.
    colors : number of colours of horizontal edges, and of vertical edges; the set has colors**4 tiles.
    tries : number of random sets of samples to choose from. Each set takes samples from all patches in turn.

    Returns
    -------
    int32 (H, W, 3), (patch, row, column) of every pixel.

    Raises
    ------
    UserError : the side of the tile is odd, or a patch is smaller than a tile.
    """
    if tile is None:
        third = min(min(patch.shape[:2]) for patch in patches) // 3
        tile = min(max(2 * third, _MIN_TILE), _MAX_TILE)
    if tile % 2:
        raise UserError(
            f"setting 'tile' of method 'wang-tiles' must be even, because a tile is cut into quarters, not {tile}"
        )
    check_sides(patches, tile, unit="tile")
    exemplar = stack(patches, 0)
    key = np.uint64(seed)
    samples, cuts = _choose_samples(exemplar, tile, colors, tries, np.uint64(derive(key, 0)))
    flat = _lay(samples, cuts, exemplar.stride, size[0], size[1], np.uint64(derive(key, 1)))
    return unflatten(flat, exemplar)


@njit(nogil=True, cache=True)
def _choose_samples(
    exemplar: Stack, tile: int, colors: int, tries: int, key: np.uint64
) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples and cuts of the set with the cheapest cuts.

    Returns
    -------
    samples : int64 (2, C), flat positions of the samples' corners, for horizontal and vertical edges.
    cuts : int64 (2, 2, C, C, T/2), one for every quarter of a tile (see `_cut`), indexed by south, east, the colour of
        the horizontal edge and that of the vertical edge.
    """
    rows, stride = exemplar.pixels.shape[1:3]
    pixels = exemplar.pixels.reshape(-1, 3)
    samples = np.empty((2, colors), dtype=np.int64)
    cuts = np.empty((2, 2, colors, colors, tile // 2), dtype=np.int64)
    best_samples, best_cuts, least = samples.copy(), cuts.copy(), np.int64(-1)
    for number in range(tries):
        try_key = derive(key, number)
        first = draw(try_key, 0, len(exemplar.sides))
        for n in range(2 * colors):
            patch = (first + n) % len(exemplar.sides)
            row = draw(try_key, 2 * n + 1, exemplar.sides[patch, 0] - tile + 1)
            column = draw(try_key, 2 * n + 2, exemplar.sides[patch, 1] - tile + 1)
            samples[n % 2, n // 2] = (patch * rows + row) * stride + column
        total = np.int64(0)
        for south in range(2):
            for east in range(2):
                for a in range(colors):
                    for b in range(colors):
                        total += _cut(
                            pixels, stride, samples[0, a], samples[1, b], south, east, cuts[south, east, a, b]
                        )
        if least < 0 or total < least:
            least = total
            best_samples[:], best_cuts[:] = samples, cuts
    return best_samples, best_cuts


@njit(nogil=True, cache=True)
def _cut(
    pixels: np.ndarray, stride: int, horizontal: int, vertical: int, south: int, east: int, out: np.ndarray
) -> np.int64:
    """Cut a quarter of a tile from its corner to the centre; return the cost of the cut.

    Rows and columns are counted from the corner of the tile. In row r, pixels from column out[r] on belong to the
    sample of the horizontal edge, and those before it to the sample of the vertical edge.
    """
    half = len(out)
    tile = 2 * half
    # Columns are relative to the diagonal: a path leaves it by at most `reach` columns and returns at the centre.
    reach = (half - 1) // 2
    errors = np.full((half, 2 * reach + 1), _NO_PATH)
    for r in range(half):
        i = tile - 1 - r if south else r
        for c in range(max(r - reach, 0), min(r + reach + 1, half)):
            # A path starts in the corner and leaves column 0 immediately, so that the edges stay intact.
            if (c == 0) == (r == 0):
                j = tile - 1 - c if east else c
                one = _in_horizontal(horizontal, i, j, tile, stride)
                other = _in_vertical(vertical, i, j, tile, stride)
                error = np.int64(0)
                for channel in range(3):
                    difference = np.int64(pixels[one, channel]) - np.int64(pixels[other, channel])
                    error += difference * difference
                errors[r, c - r + reach] = error
    totals = accumulate(errors)
    out[:] = trace(totals, reach) - reach + np.arange(half)
    return totals[half - 1, reach]


@njit(nogil=True, cache=True)
def _in_horizontal(sample: int, i: int, j: int, tile: int, stride: int) -> int:
    """Return the position of a tile's pixel in the sample of a horizontal edge, which bisects the sample."""
    return sample + (i + tile // 2) % tile * stride + j


@njit(nogil=True, cache=True)
def _in_vertical(sample: int, i: int, j: int, tile: int, stride: int) -> int:
    """Return the position of a tile's pixel in the sample of a vertical edge."""
    return sample + i * stride + (j + tile // 2) % tile


@njit(nogil=True, cache=True)
def _lay(samples: np.ndarray, cuts: np.ndarray, stride: int, height: int, width: int, key: np.uint64) -> np.ndarray:
    """Draw the colours of the edges and copy the tiles; return flat positions int32 (H, W)."""
    half = cuts.shape[-1]
    tile = 2 * half
    colors = samples.shape[1]
    down, across = (height + tile - 1) // tile, (width + tile - 1) // tile
    upper, left = np.empty((down, across), dtype=np.int64), np.empty((down, across), dtype=np.int64)
    for n in range(down * across):
        upper[n // across, n % across] = draw(key, 2 * n, colors)
        left[n // across, n % across] = draw(key, 2 * n + 1, colors)
    flat = np.empty((height, width), dtype=np.int32)
    for row in range(height):
        y, i = row // tile, row % tile
        south = i >= half
        r = tile - 1 - i if south else i
        for column in range(width):
            x, j = column // tile, column % tile
            east = j >= half
            c = tile - 1 - j if east else j
            horizontal = upper[(y + south) % down, x]
            vertical = left[y, (x + east) % across]
            if c >= cuts[int(south), int(east), horizontal, vertical, r]:
                flat[row, column] = _in_horizontal(samples[0, horizontal], i, j, tile, stride)
            else:
                flat[row, column] = _in_vertical(samples[1, vertical], i, j, tile, stride)
    return flat
