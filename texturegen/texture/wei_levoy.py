"""Wei and Levoy, "Fast texture synthesis using tree-structured vector quantization", SIGGRAPH 2000, sections 2 and 3.

Each level of a pyramid is filled in scan order: a pixel is the exemplar pixel whose causal (L-shaped) window, joined by
the 3x3 window of the level below in resolution, is nearest. The search is exhaustive, which is what their tree of
section 4 approximates. Windows of the output wrap around, so it tiles; unfilled pixels in them are random
exemplar pixels, as in section 3.1.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numba import njit

from texturegen.texture.exemplar import (
    check_sides,
    count_levels,
    interior,
    level_sizes,
    pyramid,
    stack,
    unflatten,
)
from texturegen.texture.rand import derive, draw
from texturegen.texture.settings import Whole
from texturegen.texture.windows import BARRIER, RUN, add_taps, barrier, planes

_PARENT_REACH = 2  # the 3x3 window of the level below covers two pixels of this level to every side


def wei_levoy(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    seed: int,
    *,
    window: Annotated[int, Whole(3, 31, odd=True)] = 5,
    levels: Annotated[int | None, Whole(1, 8, automatic=True)] = None,
) -> np.ndarray:
    """Return the source map int32 (H, W, 3) of a texture that tiles.

    window: side of the causal window, the same at every level. levels: of the pyramid; automatically as many as
    leave the smallest patch twice as wide as a window.
    """
    least = max(window, 2 * _PARENT_REACH + 1)
    if levels is None:
        levels = count_levels(patches, 2 * least)
    check_sides(patches, least, levels)
    scales = pyramid(patches, levels)
    sizes = level_sizes(size, levels)
    key = np.uint64(seed)
    reach = window // 2
    image = np.zeros((1, 1, 3), dtype=np.uint8)
    for level in range(levels - 1, -1, -1):
        exemplar = stack(scales[level], 0)
        colours = planes(exemplar.pixels)
        parented = level < levels - 1
        if parented:
            # The level below, enlarged: one step in it is two flat positions here, so both share one layout.
            enlarged = [
                parent.repeat(2, axis=0).repeat(2, axis=1)[: child.shape[0], : child.shape[1]]
                for parent, child in zip(scales[level + 1], scales[level], strict=True)
            ]
            parents = planes(stack([np.ascontiguousarray(parent) for parent in enlarged], 0).pixels)
            edge = max(reach, _PARENT_REACH)
            start = barrier(exemplar, edge, _PARENT_REACH, edge, edge)
        else:
            parents = colours[:, :0]
            start = barrier(exemplar, reach, 0, reach, reach)
        pixels = np.flatnonzero(interior(exemplar))
        image, flat = _scan(
            colours,
            np.ascontiguousarray(parents),
            start,
            pixels,
            exemplar.stride,
            reach,
            image,
            parented,
            sizes[level][0],
            sizes[level][1],
            np.uint64(derive(key, level)),
        )
    return unflatten(flat, exemplar)


@njit(nogil=True, cache=True)
def _scan(
    planes: np.ndarray,
    parent_planes: np.ndarray,
    start: np.ndarray,
    pixels: np.ndarray,
    stride: int,
    reach: int,
    parent: np.ndarray,
    parented: bool,
    height: int,
    width: int,
    key: np.uint64,
) -> tuple[np.ndarray, np.ndarray]:
    """Fill one level; returns its image uint8 (H, W, 3) and flat source positions int32 (H, W)."""
    source = np.empty((height, width), dtype=np.int32)
    image = np.empty((height, width, 3), dtype=np.uint8)
    for pixel in range(height * width):
        position = pixels[draw(key, pixel, len(pixels))]
        image[pixel // width, pixel % width] = planes[:, position]

    causal = [(dy, dx) for dy in range(-reach, 1) for dx in range(-reach, reach + 1) if dy < 0 or dx < 0]
    offsets = np.array([dy * stride + dx for dy, dx in causal])
    values = np.empty((len(causal), 3), dtype=np.int32)
    parental = [(dy, dx) for dy in range(-1, 2) for dx in range(-1, 2)]
    parent_offsets = np.array([2 * dy * stride + 2 * dx for dy, dx in parental])
    parent_values = np.empty((len(parental), 3), dtype=np.int32)
    ones = np.ones(max(len(causal), len(parental)), dtype=np.int32)

    candidates = np.flatnonzero(start == 0)
    first, end = candidates[0], candidates[-1] + 1
    distances = np.empty(RUN, dtype=np.int32)
    for row in range(height):
        for column in range(width):
            for tap in range(len(causal)):
                dy, dx = causal[tap]
                for channel in range(3):
                    values[tap, channel] = image[(row + dy) % height, (column + dx) % width, channel]
            if parented:
                high, wide = parent.shape[:2]
                for tap in range(len(parental)):
                    dy, dx = parental[tap]
                    for channel in range(3):
                        parent_values[tap, channel] = parent[(row // 2 + dy) % high, (column // 2 + dx) % wide, channel]
            best, least = first, BARRIER
            for begin in range(first, end, RUN):
                run = distances[: min(RUN, end - begin)]
                run[:] = start[begin : begin + len(run)]
                add_taps(planes, offsets, values, ones, begin, run)
                if parented:
                    add_taps(parent_planes, parent_offsets, parent_values, ones, begin, run)
                if run.min() < least:
                    least = run.min()
                    best = begin + np.argmin(run)
            source[row, column] = best
            image[row, column] = planes[:, best]
    return image, source
