"""Wei and Levoy, "Fast texture synthesis using tree-structured vector quantization", SIGGRAPH 2000.

Each level of a pyramid is filled in scan order with the exemplar pixel whose causal (L-shaped) window, together with
the 3x3 window of the next coarser level, is nearest (sections 2 and 3). The search is exhaustive, or approximate with
a tree (section 4). Windows wrap around the output, so the texture tiles. Pixels are initialised with random exemplar
pixels (section 3.1). The paper smooths one such image for the coarser levels, which loses the exemplar's colours, and
the texture collapses more often; here every level draws its own.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from numba import njit

from texturegen.texture.kernels.exemplar import (
    Stack,
    check_sides,
    count_levels,
    interior,
    level_sizes,
    pyramid,
    stack,
    unflatten,
)
from texturegen.texture.kernels.rand import derive, draw
from texturegen.texture.kernels.tsvq import LANES, Tree, build_tree, find, pad
from texturegen.texture.kernels.windows import BARRIER, RUN, add_taps, barrier, planes
from texturegen.texture.settings import Choice, Integer, Real

_PARENT_REACH = 2  # the 3x3 window of the coarser level extends two pixels of this level to every side


def wei_levoy(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    seed: int,
    *,
    window: Annotated[int, Integer(3, 31, odd=True)] = 5,
    levels: Annotated[int | None, Integer(1, 8, automatic=True)] = None,
    search: Annotated[str, Choice(("exhaustive", "tsvq"))] = "exhaustive",
    codebook: Annotated[float, Real(0, 1)] = 1.0,
    backtrack: Annotated[int, Integer(1, 1000)] = 2,
) -> np.ndarray:
    """Return the source map of a texture that tiles, by multi-resolution search in scan order.

    Parameters
    ----------
    patches : uint8 (h, w, 3) arrays.
    size : (H, W) of the texture in pixels.
    seed : seed of all random choices.
    window : side of the causal window in pixels, the same at every level.
    levels : levels of the pyramid; None for as many as keep the smallest patch at least twice as wide as a window.
    search : "exhaustive", or "tsvq" for tree-structured vector quantisation, which uses the settings below.
    codebook : number of codewords, as a fraction of a level's exemplar windows; 0.1 is faster and gives flatter
        textures.
    backtrack : leaves visited per pixel; with a full codebook, visiting all leaves equals the exhaustive search.

    Returns
    -------
    int32 (H, W, 3), (patch, row, column) of every pixel.

    Raises
    ------
    UserError : a patch is smaller than a window at the coarsest level.
    """
    least = max(window, 2 * _PARENT_REACH + 1)
    if levels is None:
        levels = count_levels(patches, 2 * least)
    check_sides(patches, least, levels)
    scales = pyramid(patches, levels)
    sizes = level_sizes(size, levels)
    key = np.uint64(seed)
    parent = np.zeros((1, 1, 3), dtype=np.uint8)
    for level in range(levels - 1, -1, -1):
        exemplar = stack(scales[level], 0)
        windows = _lay_out(exemplar, window // 2, scales[level + 1] if level < levels - 1 else None)
        tree = None
        if search == "tsvq":
            leaves = max(1, round(codebook * len(windows.candidates)))
            tree = build_tree(_vectors(windows), leaves)
        noise = _noise(windows.planes, np.flatnonzero(interior(exemplar)), sizes[level], np.uint64(derive(key, level)))
        parent, flat = _scan(windows, noise, parent, tree, backtrack)
    return unflatten(flat, exemplar)


class _Windows(NamedTuple):
    """Windows of one level. In `planes`, the enlarged pixels of the next coarser level follow the level's own."""

    planes: np.ndarray  # uint8 (3, M), or (3, 2 * M)
    causal: np.ndarray  # int64 (T, 2): steps (down, right) to the pixels of the causal window
    parental: np.ndarray  # int64 (S, 2): steps in the next coarser level; empty at the coarsest level
    offsets: np.ndarray  # int64 (T + S,): offsets of both in the planes, from the pixel to fill
    start: np.ndarray  # int32 (M,): 0 at candidates, which are the pixels with a complete window, else BARRIER
    candidates: np.ndarray  # int64 (n,)


def _lay_out(exemplar: Stack, reach: int, below: Sequence[np.ndarray] | None) -> _Windows:
    causal = [(dy, dx) for dy in range(-reach, 1) for dx in range(-reach, reach + 1) if (dy, dx) < (0, 0)]
    parental = [(dy, dx) for dy in range(-1, 2) for dx in range(-1, 2)] if below is not None else []
    colours = planes(exemplar.pixels)
    offsets = [dy * exemplar.stride + dx for dy, dx in causal]
    start = barrier(exemplar, reach, 0, reach, reach)
    if below is not None:
        # The coarser level is enlarged by two to share the layout: one step there is two here.
        offsets += [colours.shape[1] + 2 * (dy * exemplar.stride + dx) for dy, dx in parental]
        enlarged = np.zeros_like(exemplar.pixels)
        for target, patch, (height, width) in zip(enlarged, below, exemplar.sides, strict=True):
            target[:height, :width] = patch.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        colours = np.concatenate([colours, planes(enlarged)], axis=1)
        edge = max(reach, _PARENT_REACH)
        start = barrier(exemplar, edge, _PARENT_REACH, edge, edge)
    return _Windows(
        colours,
        np.array(causal),
        np.array(parental, dtype=np.int64).reshape(-1, 2),
        np.array(offsets),
        start,
        np.flatnonzero(start == 0),
    )


def _vectors(windows: _Windows) -> np.ndarray:
    """Return the windows of the candidates, uint8 (n, D), with interleaved colours."""
    colours = np.ascontiguousarray(windows.planes.T)[windows.candidates[:, None] + windows.offsets]
    return pad(colours.reshape(len(colours), -1))


@njit(nogil=True, cache=True)
def _noise(colours: np.ndarray, pixels: np.ndarray, size: tuple[int, int], key: np.uint64) -> np.ndarray:
    """Return noise with the histogram of the exemplar: random exemplar pixels, uint8 (H, W, 3)."""
    height, width = size
    image = np.empty((height, width, 3), dtype=np.uint8)
    for pixel in range(height * width):
        image[pixel // width, pixel % width] = colours[:, pixels[draw(key, pixel, len(pixels))]]
    return image


@njit(nogil=True, cache=True)
def _scan(
    windows: _Windows, image: np.ndarray, parent: np.ndarray, tree: Tree | None, backtrack: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fill the image of one level in place; return it and the flat source positions int32 (H, W)."""
    height, width = image.shape[:2]
    source = np.empty((height, width), dtype=np.int32)
    taps = len(windows.offsets)
    query = np.zeros((3 * taps + LANES - 1) // LANES * LANES, dtype=np.uint8)
    window = query[: 3 * taps].reshape(taps, 3)
    passed = np.empty((2, 2 * len(windows.candidates)), dtype=np.int32)
    for row in range(height):
        for column in range(width):
            _gather(image, row, column, windows.causal, window)
            _gather(parent, row // 2, column // 2, windows.parental, window[len(windows.causal) :])
            if tree is None:
                best = _nearest(windows, window)
            else:
                best = windows.candidates[find(tree, query, backtrack, passed)]
            source[row, column] = best
            image[row, column] = windows.planes[:, best]
    return image, source


@njit(nogil=True, cache=True)
def _gather(image: np.ndarray, row: int, column: int, steps: np.ndarray, window: np.ndarray) -> None:
    """Copy the pixels at the given steps from a pixel into window, uint8 (T, 3), wrapping around the image."""
    height, width = image.shape[:2]
    for tap in range(len(steps)):
        y, x = row + steps[tap, 0], column + steps[tap, 1]
        # A modulo is slow and most pixels are far from the edges, so the edges are tested first.
        if y < 0 or y >= height:
            y %= height
        if x < 0 or x >= width:
            x %= width
        for channel in range(3):
            window[tap, channel] = image[y, x, channel]


@njit(nogil=True, cache=True)
def _nearest(windows: _Windows, window: np.ndarray) -> int:
    """Return the candidate with the nearest window; the first wins ties."""
    values = window.astype(np.int32)
    ones = np.ones(len(values), dtype=np.int32)
    distances = np.empty(RUN, dtype=np.int32)
    first, end = windows.candidates[0], windows.candidates[-1] + 1
    best, least = first, BARRIER
    for begin in range(first, end, RUN):
        run = distances[: min(RUN, end - begin)]
        start = windows.start[begin : begin + len(run)]
        for k in range(len(run)):  # several times faster than assigning the slice
            run[k] = start[k]
        add_taps(windows.planes, windows.offsets, values, ones, begin, run)
        if run.min() < least:
            least = run.min()
            best = begin + np.argmin(run)
    return best
