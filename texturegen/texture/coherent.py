"""Coherent synthesis, the default: every output pixel carries the coordinates of an exemplar pixel, coarse to fine.

A candidate for a pixel is where a neighbour came from, moved by the offset between the two (Ashikhmin,
"Synthesizing natural textures", I3D 2001, section 3), plus a random one in place of the precomputed similar windows
of Tong et al., SIGGRAPH 2002 (k-coherence). Coordinates go from level to level and are corrected there in passes,
as in Lefebvre and Hoppe, "Parallel controllable texture synthesis", SIGGRAPH 2005, section 3. Passes take the pixels
in random order: in scan order the nearest window is most often a flat one, and the texture collapses. More random
candidates do the same. Windows wrap around the output, so it tiles.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from numba import njit

from texturegen.texture.exemplar import (
    Stack,
    check_sides,
    count_levels,
    interior,
    level_sizes,
    pyramid,
    stack,
    unflatten,
)
from texturegen.texture.rand import derive, draw, shuffle
from texturegen.texture.settings import Whole

# With patches smaller than this at the coarsest level, a block there is a whole patch and objects survive.
_LEAST_SIDE = 24


def coherent(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    seed: int,
    *,
    window: Annotated[int, Whole(3, 15, odd=True)] = 5,
    levels: Annotated[int | None, Whole(1, 8, automatic=True)] = None,
    block: Annotated[int, Whole(1, 256)] = 8,
    first_passes: Annotated[int, Whole(0, 20)] = 3,
    passes: Annotated[int, Whole(0, 20)] = 2,
    random_candidates: Annotated[int, Whole(0, 50)] = 1,
) -> np.ndarray:
    """Return the source map int32 (H, W, 3) of a texture that tiles.

    window: side of the compared neighbourhoods. levels: of the pyramid; automatically as many as leave the smallest
    patch 24 pixels. block: side of the random blocks that the coarsest level starts from; larger ones copy more of
    a patch verbatim. first_passes, passes: corrections at the coarsest and at the other levels.
    random_candidates: exemplar pixels tried per visit besides the neighbours'.
    """
    if levels is None:
        levels = count_levels(patches, max(_LEAST_SIDE, window))
    check_sides(patches, window, levels)
    scales = pyramid(patches, levels)
    sizes = level_sizes(size, levels)
    # Exemplar pixels near an edge are candidates too, with reflected windows: small patches have few others.
    border = window // 2
    exemplar = stack(scales[-1], border)
    key = np.uint64(seed)
    for level in range(levels - 1, -1, -1):
        level_key = np.uint64(derive(key, level))
        if level == levels - 1:
            flat = _tile(exemplar, sizes[level], block, np.uint64(derive(level_key, 0)))
        else:
            coarse, exemplar = exemplar, stack(scales[level], border)
            flat = _refine(flat, coarse, exemplar, sizes[level])
        count = first_passes if level == levels - 1 else passes
        _correct(flat, _pack(exemplar, interior(exemplar)), border, count, random_candidates, level_key)
    return unflatten(flat, exemplar)


class _Windows(NamedTuple):
    """The exemplar side of one level, by flat position. A colour is one uint32: red, green, blue, nothing."""

    colours: np.ndarray  # uint32 (M,)
    inside: np.ndarray  # bool (M,): a pixel of a patch, so a candidate
    pixels: np.ndarray  # int32 (N,): the positions that are inside
    windows: np.ndarray  # uint32 (M, L): each candidate's window in one piece, then zeros
    stride: int


@njit(nogil=True, cache=True)
def _pack(exemplar: Stack, inside: np.ndarray) -> _Windows:
    channels = exemplar.pixels.reshape(-1, 3)
    colours = np.empty(len(channels), dtype=np.uint32)
    for position in range(len(channels)):
        red, green, blue = channels[position]
        colours[position] = red | green << 8 | blue << 16
    flat_inside = inside.reshape(-1)
    pixels = np.flatnonzero(flat_inside).astype(np.int32)
    stride = exemplar.pixels.shape[2]
    side = 2 * exemplar.border + 1
    windows = np.zeros((len(colours), _window_length(side)), dtype=np.uint32)
    for pixel in pixels:
        window = windows[pixel]
        corner = pixel - exemplar.border * (stride + 1)
        for row in range(side):
            line = colours[corner + row * stride : corner + row * stride + side]
            for column in range(side):
                window[row * side + column] = line[column]
    return _Windows(colours, flat_inside, pixels, windows, stride)


@njit(nogil=True, cache=True)
def _window_length(side: int) -> int:
    """A window's colours, rounded up to whole vectors of four."""
    return (side * side + 3) // 4 * 4


@njit(nogil=True, cache=True)
def _tile(exemplar: Stack, size: tuple[int, int], block: int, key: np.uint64) -> np.ndarray:
    """Cover the output with blocks from random places; returns flat positions int32 (H, W)."""
    height, width = size
    flat = np.empty((height, width), dtype=np.int32)
    rows, stride = exemplar.pixels.shape[1:3]
    number = 0
    for top in range(0, height, block):
        for left in range(0, width, block):
            patch = draw(key, 3 * number, len(exemplar.sides))
            tall, wide = min(block, exemplar.sides[patch, 0]), min(block, exemplar.sides[patch, 1])
            from_top = draw(key, 3 * number + 1, exemplar.sides[patch, 0] - tall + 1) + exemplar.border
            from_left = draw(key, 3 * number + 2, exemplar.sides[patch, 1] - wide + 1) + exemplar.border
            number += 1
            for i in range(top, min(top + block, height)):
                for j in range(left, min(left + block, width)):
                    # A block larger than the patch repeats it.
                    row, column = from_top + (i - top) % tall, from_left + (j - left) % wide
                    flat[i, j] = (patch * rows + row) * stride + column
    return flat


@njit(nogil=True, cache=True)
def _refine(flat: np.ndarray, coarse: Stack, fine: Stack, size: tuple[int, int]) -> np.ndarray:
    """Turn one level's positions into the next one's: each becomes a 2x2 square."""
    height, width = size
    result = np.empty((height, width), dtype=np.int32)
    coarse_rows, coarse_stride = coarse.pixels.shape[1:3]
    rows, stride = fine.pixels.shape[1:3]
    for i in range(height):
        for j in range(width):
            line, column = divmod(flat[i // 2, j // 2], coarse_stride)
            patch, row = divmod(line, coarse_rows)
            # An odd side was rounded up when it was halved.
            row = min(2 * (row - coarse.border) + i % 2, fine.sides[patch, 0] - 1)
            column = min(2 * (column - coarse.border) + j % 2, fine.sides[patch, 1] - 1)
            result[i, j] = (patch * rows + row + fine.border) * stride + column + fine.border
    return result


@njit(nogil=True, cache=True)
def _correct(
    flat: np.ndarray, exemplar: _Windows, border: int, passes: int, random_candidates: int, key: np.uint64
) -> None:
    """Visit every pixel, in random order, and replace its position by the candidate with the nearest window."""
    height, width = flat.shape
    side = 2 * border + 1
    source = flat.reshape(-1)
    image = exemplar.colours[source]
    # Row and column of the window pixel at i + a, j + b: the output wraps around.
    lines = (np.arange(height + 2 * border) - border) % height * width
    columns = (np.arange(width + 2 * border) - border) % width
    window = np.zeros(_window_length(side), dtype=np.uint32)
    tried = np.empty(10, dtype=np.int32)
    order = np.arange(height * width)
    for number in range(passes):
        pass_key = derive(key, number + 1)
        shuffle(order, len(order), derive(pass_key, 0))
        random_key = derive(pass_key, 1)
        for pixel in order:
            row, column = pixel // width, pixel % width
            for a in range(side):
                line = lines[row + a]
                for b in range(side):
                    window[a * side + b] = image[line + columns[column + b]]
            own = source[pixel]
            best, least = own, _distance(exemplar.windows[own], window)
            tried[0] = own
            count = 1
            for dy in range(-1, 2):
                line = lines[row + border + dy]
                for dx in range(-1, 2):
                    candidate = source[line + columns[column + border + dx]] - dy * exemplar.stride - dx
                    # Moved across a patch's edge it is in the border; moved inside one area, it is known already.
                    new = exemplar.inside[candidate]
                    for k in range(count):
                        new = new and tried[k] != candidate
                    if new:
                        tried[count] = candidate
                        count += 1
                        distance = _distance(exemplar.windows[candidate], window)
                        if distance < least:
                            best, least = candidate, distance
            for k in range(random_candidates):
                draw_number = pixel * random_candidates + k
                candidate = exemplar.pixels[draw(random_key, draw_number, len(exemplar.pixels))]
                distance = _distance(exemplar.windows[candidate], window)
                if distance < least:
                    best, least = candidate, distance
            source[pixel] = best
            image[pixel] = exemplar.colours[best]


@njit(nogil=True, cache=True)
def _distance(window: np.ndarray, other: np.ndarray) -> np.int32:
    """Squared distance of two packed windows. Taken whole: vectors are faster than an early exit."""
    ours, theirs = window.view(np.uint8), other.view(np.uint8)
    total = np.int32(0)
    for k in range(len(ours)):
        difference = np.int32(np.int32(ours[k]) - np.int32(theirs[k]))
        total += np.int32(difference * difference)
    return total
