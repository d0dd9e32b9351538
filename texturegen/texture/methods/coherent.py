"""Coherent synthesis, the default method: a search for the source coordinates of every output pixel, coarse to fine.

A pixel has three kinds of candidates: the source of a neighbour, shifted by the offset between the two
(Ashikhmin, "Synthesizing natural textures", I3D 2001, section 3); an exemplar pixel similar to one of these (Tong et
al., "Synthesis of bidirectional texture functions on arbitrary surfaces", SIGGRAPH 2002: k-coherence); and random ones.
Computing similarity in advance would cost more for larger exemplars, so it is learnt during the search: two pixels
count as similar if one has replaced the other.

Coordinates are passed from level to level and corrected there in passes of four interleaved subpasses (Lefebvre and
Hoppe, "Parallel controllable texture synthesis", SIGGRAPH 2005, section 3). In scan order the nearest windows are
mostly flat, and the texture collapses.

A greedy search still prefers flat regions and long copies, so two penalties are added to the distance: `reuse`, for
each earlier use of an exemplar pixel (the uniformity of Kaspar et al., "Self tuning texture optimization",
Eurographics 2015, section 4), and `novelty`, for keeping the current source. Both are highest at the coarsest level,
which determines the content of the texture and where an object would survive, and lowest at the finest, where seams
matter. docs/synthesis.md reports their effects. Windows wrap around the output, so the texture tiles.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from numba import njit

from texturegen.texture.kernels.exemplar import (
    Stack,
    check_sides,
    count_levels,
    level_sizes,
    pyramid,
    stack,
    unflatten,
)
from texturegen.texture.kernels.rand import derive, draw, shuffle
from texturegen.texture.kernels.simd import LANES, run_distance
from texturegen.texture.settings import Integer

# Minimum side of the coarsest patches: a window would cover most of a smaller one, and whole objects would survive.
_MIN_SIDE = 7
# Minimum side of the coarsest output: a smaller one would be copied in one piece from a much larger patch.
_MIN_OUTPUT = 16
# Larger patches are cropped to this multiple of the output's side, but not below this many pixels.
_MAX_RATIO = 2
_MIN_CROP = 128
# The penalty of a single use would round to 0 in grey levels, so penalties are in fractions of one.
_PENALTY_SCALE = 256
# Penalty of positions outside the patches, far above any other.
_FORBIDDEN = np.int64(1 << 60)


def coherent(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    seed: int,
    *,
    window: Annotated[int, Integer(3, 15, odd=True)] = 5,
    levels: Annotated[int | None, Integer(1, 8, automatic=True)] = None,
    block: Annotated[int, Integer(1, 256)] = 3,
    first_passes: Annotated[int | None, Integer(0, 50, automatic=True)] = None,
    passes: Annotated[int, Integer(0, 50)] = 3,
    last_passes: Annotated[int | None, Integer(0, 50, automatic=True)] = None,
    candidates: Annotated[int, Integer(0, 50)] = 1,
    reuse: Annotated[int, Integer(0, 255)] = 12,
    novelty: Annotated[int, Integer(0, 255)] = 18,
) -> np.ndarray:
    """Return the source map of a texture that tiles, by coarse-to-fine coherent search.

    A patch side that exceeds both 128 pixels and twice the output's side is cropped to the larger of the two, at a
    random position.

    Parameters
    ----------
    patches : uint8 (h, w, 3) arrays.
    size : (H, W) of the texture in pixels.
    seed : seed of all random choices.
    window : side of the compared neighbourhoods in pixels.
    levels : levels of the pyramid; None for as many as keep the smallest patch at 7 and the output at 16 pixels.
    block : side of the random blocks that initialise the coarsest level; larger blocks copy more of a patch verbatim.
    first_passes : correction passes at the coarsest level; None for 15, or 6 if there is one level.
    passes : correction passes at the intermediate levels.
    last_passes : correction passes at the finest level; None for 1, or 2 if there are two levels.
    candidates : random exemplar pixels tried at every visit of a pixel.
    reuse : penalty, in grey levels of the mean difference, of a pixel used an average number of times, at the coarsest
        level; a quarter of that at each finer level.
    novelty : penalty of keeping the current source, in grey levels of the mean difference, at the coarsest level; a
        third of that at each finer level.

    Returns
    -------
    int32 (H, W, 3), (patch, row, column) of every pixel.

    Raises
    ------
    UserError : a patch is smaller than a window at the coarsest level.
    """
    if levels is None:
        levels = min(count_levels(patches, max(_MIN_SIDE, window)), max(1, (min(size) // _MIN_OUTPUT).bit_length()))
    check_sides(patches, window, levels)
    # A patch must hold a window at the coarsest level, as in check_sides.
    least = max(_MIN_CROP, (window - 1) * 2 ** (levels - 1) + 1)
    patches, corners = _crop(patches, size, least, np.uint64(derive(np.uint64(seed), levels)))
    scales = pyramid(patches, levels)
    sizes = level_sizes(size, levels)
    border = window // 2
    # Candidates one pixel outside their patch are read before they are rejected, so the border is one pixel wider.
    exemplar = stack(scales[-1], border + 1)
    if first_passes is None:
        first_passes = 15 if levels > 1 else 6
    if last_passes is None:
        last_passes = 2 if levels == 2 else 1
    values = 3 * window**2 * _PENALTY_SCALE
    key = np.uint64(seed)
    for level in range(levels - 1, -1, -1):
        level_key = np.uint64(derive(key, level))
        if level == levels - 1:
            flat = _tile(exemplar, sizes[level], block, np.uint64(derive(level_key, 0)))
            count = first_passes
        else:
            coarse, exemplar = exemplar, stack(scales[level], border + 1)
            flat = _refine(flat, coarse, exemplar, sizes[level])
            count = passes if level else last_passes
        finer = levels - 1 - level
        side = _prepare_exemplar(exemplar, reuse * values // 4**finer, flat.size)
        _correct(flat, side, border, count, candidates, novelty * values // 3**finer, level_key)
    source = unflatten(flat, exemplar)
    if corners.any():
        source[..., 1:] += corners[source[..., 0]]
    return source


def _crop(
    patches: Sequence[np.ndarray], size: tuple[int, int], least: int, key: np.uint64
) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Crop sides that exceed `least` and _MAX_RATIO times the output's, at random positions.

    This bounds the cost, and a crop still holds more than the output can show. Return the crops and their corners in
    the patches, int32 (P, 2).
    """
    corners = np.zeros((len(patches), 2), dtype=np.int32)
    cut = list(patches)
    for number, patch in enumerate(patches):
        for axis in (0, 1):
            most = max(_MAX_RATIO * size[axis], least)
            if patch.shape[axis] > most:
                corners[number, axis] = draw(key, 2 * number + axis, patch.shape[axis] - most + 1)
                cut[number] = cut[number].take(range(corners[number, axis], corners[number, axis] + most), axis)
    return cut, corners


class _Exemplar(NamedTuple):
    """The exemplar at one level, indexed by flat position."""

    colours: np.ndarray  # uint8 (3 * M + slack,)
    stride: int
    pixels: np.ndarray  # int32 (N,): positions inside patches, from which random candidates are drawn
    penalties: np.ndarray  # int64 (M,): added to the distance of a candidate; _FORBIDDEN outside the patches
    similar: np.ndarray  # int32 (M,): the position that last replaced this one or was replaced by it; initially itself
    use_penalty: int  # added to the penalty of a pixel per use


def _prepare_exemplar(exemplar: Stack, reuse: int, output: int) -> _Exemplar:
    """Return the exemplar of one level; `reuse` is the penalty of the mean number of uses in `output` pixels."""
    penalties = np.full(exemplar.pixels.size // 3, _FORBIDDEN)
    pixels = np.empty(int(exemplar.sides.prod(axis=1).sum()), dtype=np.int32)
    _fill(exemplar, penalties, pixels)
    similar = np.arange(penalties.size, dtype=np.int32)
    colours = np.zeros(exemplar.pixels.size + LANES, dtype=np.uint8)
    colours[: exemplar.pixels.size] = exemplar.pixels.reshape(-1)
    # With an exemplar larger than the output, no pixel needs to be used twice.
    use_penalty = reuse * len(pixels) // max(len(pixels), output)
    return _Exemplar(colours, exemplar.stride, pixels, penalties, similar, use_penalty)


@njit(nogil=True, cache=True)
def _fill(exemplar: Stack, penalties: np.ndarray, pixels: np.ndarray) -> None:
    """Write the positions of the pixels inside the patches, and set their penalty to 0."""
    rows, stride = exemplar.pixels.shape[1:3]
    number = 0
    for patch in range(len(exemplar.sides)):
        height, width = exemplar.sides[patch]
        for row in range(height):
            start = (patch * rows + row + exemplar.border) * stride + exemplar.border
            for position in range(start, start + width):
                penalties[position] = 0
                pixels[number] = position
                number += 1


@njit(nogil=True, cache=True)
def _tile(exemplar: Stack, size: tuple[int, int], block: int, key: np.uint64) -> np.ndarray:
    """Cover the output with blocks from random positions; return flat positions int32 (H, W)."""
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
                    # A block larger than its patch repeats it.
                    row, column = from_top + (i - top) % tall, from_left + (j - left) % wide
                    flat[i, j] = (patch * rows + row) * stride + column
    return flat


@njit(nogil=True, cache=True)
def _refine(flat: np.ndarray, coarse: Stack, fine: Stack, size: tuple[int, int]) -> np.ndarray:
    """Return the positions for the next finer level, where each becomes a 2x2 square."""
    height, width = size
    result = np.empty((height, width), dtype=np.int32)
    coarse_rows, coarse_stride = coarse.pixels.shape[1:3]
    rows, stride = fine.pixels.shape[1:3]
    for i in range(flat.shape[0]):
        for j in range(flat.shape[1]):
            line, column = divmod(flat[i, j], coarse_stride)
            patch, row = divmod(line, coarse_rows)
            start = patch * rows * stride
            row, column = 2 * (row - coarse.border), 2 * (column - coarse.border)
            for down in range(min(2, height - 2 * i)):
                for right in range(min(2, width - 2 * j)):
                    # Halving rounds odd sides up, so a position may be outside.
                    y = min(row + down, fine.sides[patch, 0] - 1) + fine.border
                    x = min(column + right, fine.sides[patch, 1] - 1) + fine.border
                    result[2 * i + down, 2 * j + right] = start + y * stride + x
    return result


@njit(nogil=True, cache=True)
def _correct(
    flat: np.ndarray, exemplar: _Exemplar, border: int, passes: int, candidates: int, novelty: int, key: np.uint64
) -> int:
    """Replace each pixel's position by the candidate with the smallest distance plus penalty, in `passes` passes.

    The output has a margin of `border` pixels that repeats the opposite side, so windows need not wrap. Return the
    number of windows compared, for benchmarks/synthesis.py.
    """
    # Passing a tuple of arrays counts their references, which takes longer than a window, so it is unpacked.
    colours, stride, pixels, penalties, similar, use_penalty = exemplar
    height, width = flat.shape
    line = width + 2 * border
    source = np.empty((height + 2 * border) * line, dtype=np.int32)
    image = np.zeros(3 * len(source) + LANES, dtype=np.uint8)
    for row in range(height):
        for column in range(width):
            penalties[flat[row, column]] += use_penalty
            _put(source, image, height, width, border, row, column, flat[row, column], colours)
    run = 3 * (2 * border + 1)
    mask = np.zeros((run + LANES - 1) // LANES * LANES, dtype=np.uint8)
    mask[:run] = 255
    step, output_step = np.uint64(3 * stride), np.uint64(3 * line)
    tried = np.empty(2 * 9 + candidates, dtype=np.int32)
    subpasses = np.arange(4)
    comparisons = 0
    for number in range(passes):
        pass_key = derive(key, number + 1)
        shuffle(subpasses, 4, derive(pass_key, 0))
        random_key = derive(pass_key, 1)
        for subpass in subpasses:
            for row in range(subpass // 2, height, 2):
                for column in range(subpass % 2, width, 2):
                    at = (row + border) * line + column + border
                    own = source[at]
                    penalties[own] -= use_penalty
                    count = _collect(source, at, line, stride, similar, tried)
                    for k in range(candidates):
                        pick = draw(random_key, (row * width + column) * candidates + k, len(pixels))
                        tried[count] = pixels[pick]
                        count += 1
                    comparisons += count
                    # Branches on the contents of windows would often be mispredicted, and writes would evict the
                    # output's window from the registers, so this loop has neither. Comparing a candidate twice, or
                    # one outside its patch, costs less than skipping it.
                    best, least = own, _FORBIDDEN
                    theirs = np.uint64(3 * (at - border * (line + 1)))
                    for k in range(count):
                        candidate = tried[k]
                        ours = np.uint64(3 * (candidate - border * (stride + 1)))
                        if border == 2:
                            distance = _distance_5(colours, ours, step, image, theirs, output_step, mask)
                        else:
                            distance = _distance(colours, ours, step, image, theirs, output_step, mask, 2 * border + 1)
                        cost = (
                            _PENALTY_SCALE * np.int64(distance)
                            + penalties[candidate]
                            + (novelty if candidate == own else 0)
                        )
                        if cost < least:
                            best, least = candidate, cost
                    penalties[best] += use_penalty
                    if best != own:
                        similar[own], similar[best] = best, own
                        _put(source, image, height, width, border, row, column, best, colours)
    for row in range(height):
        for column in range(width):
            flat[row, column] = source[(row + border) * line + column + border]
    return comparisons


@njit(nogil=True, cache=True)
def _collect(source: np.ndarray, at: int, line: int, stride: int, similar: np.ndarray, tried: np.ndarray) -> int:
    """Write the current position, the eight neighbours' proposals, and pixels similar to these; return the count."""
    own = source[at]
    tried[0] = own
    count = 1
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            if dy != 0 or dx != 0:
                candidate = np.int32(source[at + dy * line + dx] - dy * stride - dx)
                tried[count] = candidate
                count += candidate != own
    for k in range(count):
        tried[count + k] = similar[tried[k]]
    return 2 * count


@njit(nogil=True, cache=True)
def _put(
    source: np.ndarray,
    image: np.ndarray,
    height: int,
    width: int,
    border: int,
    row: int,
    column: int,
    position: int,
    colours: np.ndarray,
) -> None:
    """Write a pixel of the output and its copies in the margins."""
    line = width + 2 * border
    # One loop or function for both cases would make synthesis 50 % slower, so the code is written twice.
    if border <= row < height - border and border <= column < width - border:
        at = (row + border) * line + column + border
        source[at] = position
        for channel in range(3):
            image[3 * at + channel] = colours[3 * position + channel]
        return
    for i in range((row + border) % height, height + 2 * border, height):
        for j in range((column + border) % width, line, width):
            at = i * line + j
            source[at] = position
            for channel in range(3):
                image[3 * at + channel] = colours[3 * position + channel]


# Numba tests an index that may be negative on every access, so windows are located by unsigned indices.


@njit(nogil=True, cache=True, inline="always")
def _distance_5(
    colours: np.ndarray,
    ours: np.uint64,
    step: np.uint64,
    image: np.ndarray,
    theirs: np.uint64,
    output_step: np.uint64,
    mask: np.ndarray,
) -> np.int32:
    """Return `_distance` for the default window: five rows of one vector each, unrolled by the compiler."""
    total = np.int32(0)
    for row in range(5):
        number = np.uint64(row)
        run = run_distance(colours, ours + number * step, image, theirs + number * output_step, mask, np.uint64(0))
        total = np.int32(total + run)
    return total


@njit(nogil=True, cache=True)
def _distance(
    colours: np.ndarray,
    ours: np.uint64,
    step: np.uint64,
    image: np.ndarray,
    theirs: np.uint64,
    output_step: np.uint64,
    mask: np.ndarray,
    rows: int,
) -> np.int32:
    """Return the sum of absolute differences of two windows, given their first bytes and the steps from row to row."""
    total = np.int32(0)
    for _ in range(rows):
        for start in range(0, len(mask), LANES):
            shift = np.uint64(start)
            run = run_distance(colours, ours + shift, image, theirs + shift, mask, shift)
            total = np.int32(total + run)
        ours += step
        theirs += output_step
    return total
