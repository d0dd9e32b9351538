"""Coherent synthesis, the default: every output pixel carries the coordinates of an exemplar pixel, coarse to fine.

A candidate for a pixel is where a neighbour came from, moved by the offset between the two (Ashikhmin,
"Synthesizing natural textures", I3D 2001, section 3), plus a few random ones in place of the precomputed similar
windows of Tong et al., SIGGRAPH 2002 (k-coherence). Coordinates go from level to level and are corrected there in
passes of four interleaved subpasses, as in Lefebvre and Hoppe, "Parallel controllable texture synthesis", SIGGRAPH
2005, section 3: in scan order the nearest window is most often a flat one, and the texture collapses.

A greedy search still prefers flat regions and long copies. Two prices work against that: `reuse`, which every use of an
exemplar pixel adds to the next one (the uniformity of Kaspar et al., "Self tuning texture optimization", Eurographics
2015, section 4), and `novelty`, which a pixel pays for staying where it is. docs/synthesis.md has what each of them
gave. Windows wrap around the output, so it tiles.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from numba import njit

from texturegen.texture.exemplar import (
    Stack,
    check_sides,
    count_levels,
    level_sizes,
    pyramid,
    stack,
    unflatten,
)
from texturegen.texture.rand import derive, draw, shuffle
from texturegen.texture.settings import Whole
from texturegen.texture.simd import LANES, run_distance

# The coarsest patches: in smaller ones a window covers nearly all there is, and whole objects survive.
_LEAST_SIDE = 8
# The coarsest output: from a patch much larger than the output, a smaller one would be copied in one piece.
_LEAST_OUTPUT = 16
# Prices are in parts of a grey level, so that the price of one use among very many is not rounded to nothing.
_PARTS = 256
# The price of what is no pixel of a patch; no real one comes near it.
_FORBIDDEN = np.int64(1 << 60)


def coherent(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    seed: int,
    *,
    window: Annotated[int, Whole(3, 15, odd=True)] = 5,
    levels: Annotated[int | None, Whole(1, 8, automatic=True)] = None,
    block: Annotated[int, Whole(1, 256)] = 5,
    first_passes: Annotated[int, Whole(0, 50)] = 10,
    passes: Annotated[int, Whole(0, 50)] = 2,
    last_passes: Annotated[int, Whole(0, 50)] = 1,
    candidates: Annotated[int, Whole(0, 50)] = 1,
    reuse: Annotated[int, Whole(0, 255)] = 6,
    novelty: Annotated[int, Whole(0, 255)] = 5,
) -> np.ndarray:
    """Return the source map int32 (H, W, 3) of a texture that tiles.

    window: side of the compared neighbourhoods. levels: of the pyramid; automatically as many as leave the smallest
    patch 8 pixels and the output 16. block: side of the random blocks that the coarsest level starts from; larger ones
    copy more of a patch verbatim. first_passes, last_passes, passes: corrections at the coarsest, the finest and the
    other levels (a single level counts as the coarsest). candidates: random exemplar pixels tried per visit at the
    finest level, twice as many at each coarser one.
    reuse: grey levels that an exemplar pixel's fair share of the output adds to its windows' mean difference.
    novelty: grey levels by which another candidate may be worse than the present one and still replace it.
    """
    if levels is None:
        levels = min(count_levels(patches, max(_LEAST_SIDE, window)), max(1, (min(size) // _LEAST_OUTPUT).bit_length()))
    check_sides(patches, window, levels)
    scales = pyramid(patches, levels)
    sizes = level_sizes(size, levels)
    # Exemplar pixels near an edge are candidates too, with reflected windows: small patches have few others.
    border = window // 2
    exemplar = stack(scales[-1], border)
    values = 3 * window**2
    key = np.uint64(seed)
    for level in range(levels - 1, -1, -1):
        level_key = np.uint64(derive(key, level))
        if level == levels - 1:
            flat = _tile(exemplar, sizes[level], block, np.uint64(derive(level_key, 0)))
            count = first_passes
        else:
            coarse, exemplar = exemplar, stack(scales[level], border)
            flat = _refine(flat, coarse, exemplar, sizes[level])
            count = passes if level else last_passes
        side = _lay_out(exemplar, reuse * values * _PARTS, flat.size)
        _correct(flat, side, border, count, candidates << level, novelty * values * _PARTS, level_key)
    return unflatten(flat, exemplar)


class _Exemplar(NamedTuple):
    """The exemplar side of one level, by flat position."""

    colours: np.ndarray  # uint8 (3 * M + slack,)
    stride: int
    pixels: np.ndarray  # int32 (N,): the positions inside a patch, which are the candidates
    prices: np.ndarray  # int64 (M,): what is added to the distance of a candidate; _FORBIDDEN outside the patches
    share: int  # what one use adds to the price


class _Output(NamedTuple):
    """The output with a margin that repeats the opposite side, so that no window needs to wrap."""

    source: np.ndarray  # int32 (rows * stride,): flat positions in the exemplar
    colours: np.ndarray  # uint8 (3 * rows * stride + slack,)
    height: int
    width: int
    border: int
    stride: int


def _lay_out(exemplar: Stack, reuse: int, output: int) -> _Exemplar:
    """`reuse` is the price of a fair share of an output of `output` pixels."""
    prices = np.full(exemplar.pixels.size // 3, _FORBIDDEN)
    pixels = np.empty(int(exemplar.sides.prod(axis=1).sum()), dtype=np.int32)
    _fill(exemplar, prices, pixels)
    colours = np.zeros(exemplar.pixels.size + _slack(exemplar.border), dtype=np.uint8)
    colours[: exemplar.pixels.size] = exemplar.pixels.reshape(-1)
    # Of an exemplar larger than the output, no pixel need be used twice.
    share = reuse * len(pixels) // max(len(pixels), output)
    return _Exemplar(colours, exemplar.stride, pixels, prices, share)


@njit(nogil=True, cache=True)
def _fill(exemplar: Stack, prices: np.ndarray, pixels: np.ndarray) -> None:
    """List the pixels inside the patches, and allow them."""
    rows, stride = exemplar.pixels.shape[1:3]
    number = 0
    for patch in range(len(exemplar.sides)):
        height, width = exemplar.sides[patch]
        for row in range(height):
            start = (patch * rows + row + exemplar.border) * stride + exemplar.border
            for position in range(start, start + width):
                prices[position] = 0
                pixels[number] = position
                number += 1


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
    flat: np.ndarray, exemplar: _Exemplar, border: int, passes: int, candidates: int, novelty: int, key: np.uint64
) -> int:
    """Visit every pixel and replace its position by the candidate with the least distance and price.

    Returns how many windows were compared, which benchmarks/synthesis.py reports.
    """
    height, width = flat.shape
    stride = width + 2 * border
    cells = (height + 2 * border) * stride
    colours = np.zeros(3 * cells + _slack(border), dtype=np.uint8)
    output = _Output(np.empty(cells, dtype=np.int32), colours, height, width, border, stride)
    for row in range(height):
        for column in range(width):
            exemplar.prices[flat[row, column]] += exemplar.share
            _put(output, row, column, flat[row, column], exemplar.colours)
    mask = np.zeros(_slack(border), dtype=np.uint8)
    mask[: 3 * (2 * border + 1)] = 255
    tried = np.empty(9, dtype=np.int32)
    subpasses = np.arange(4)
    comparisons = 0
    for number in range(passes):
        pass_key = derive(key, number + 1)
        shuffle(subpasses, 4, derive(pass_key, 0))
        random_key = derive(pass_key, 1)
        for subpass in subpasses:
            for row in range(subpass // 2, height, 2):
                for column in range(subpass % 2, width, 2):
                    at = (row + border) * stride + column + border
                    own = output.source[at]
                    exemplar.prices[own] -= exemplar.share
                    best, least = own, _cost(exemplar, own, output, at, border, mask) + novelty
                    tried[0] = own
                    count = 1
                    for dy in range(-1, 2):
                        for dx in range(-1, 2):
                            candidate = np.int32(output.source[at + dy * stride + dx] - dy * exemplar.stride - dx)
                            # Moved across a patch's edge it is forbidden; moved inside one area, it is known already.
                            new = exemplar.prices[candidate] < _FORBIDDEN
                            for k in range(count):
                                new = new and tried[k] != candidate
                            if new:
                                tried[count] = candidate
                                count += 1
                                cost = _cost(exemplar, candidate, output, at, border, mask)
                                if cost < least:
                                    best, least = candidate, cost
                    for k in range(candidates):
                        place = draw(random_key, (row * width + column) * candidates + k, len(exemplar.pixels))
                        candidate = exemplar.pixels[place]
                        cost = _cost(exemplar, candidate, output, at, border, mask)
                        if cost < least:
                            best, least = candidate, cost
                    comparisons += count + candidates
                    exemplar.prices[best] += exemplar.share
                    if best != own:
                        _put(output, row, column, best, exemplar.colours)
    for row in range(height):
        for column in range(width):
            flat[row, column] = output.source[(row + border) * stride + column + border]
    return comparisons


@njit(nogil=True, cache=True)
def _put(output: _Output, row: int, column: int, position: int, colours: np.ndarray) -> None:
    """Write a pixel wherever it stands: once, and again for every margin that repeats it."""
    for i in range((row + output.border) % output.height, output.height + 2 * output.border, output.height):
        for j in range((column + output.border) % output.width, output.stride, output.width):
            at = i * output.stride + j
            output.source[at] = position
            for channel in range(3):
                output.colours[3 * at + channel] = colours[3 * position + channel]


@njit(nogil=True, cache=True)
def _cost(exemplar: _Exemplar, candidate: np.int32, output: _Output, at: int, border: int, mask: np.ndarray) -> int:
    """Sum of absolute differences of the windows around two positions, in parts, and the candidate's price."""
    # Unsigned, because an index that may be negative costs a test each time.
    ours = np.uint64(3 * (candidate - border * (exemplar.stride + 1)))
    theirs = np.uint64(3 * (at - border * (output.stride + 1)))
    line, other_line = np.uint64(3 * exemplar.stride), np.uint64(3 * output.stride)
    total = np.int32(0)
    if border == 2:
        # The default window in five steps that the compiler knows: half the time of the loop below.
        for row in range(5):
            step = np.uint64(row)
            run = run_distance(
                exemplar.colours, ours + step * line, output.colours, theirs + step * other_line, mask, np.uint64(0)
            )
            total = np.int32(total + run)
        return _PARTS * np.int64(total) + exemplar.prices[candidate]
    for _ in range(2 * border + 1):
        for start in range(0, len(mask), LANES):
            step = np.uint64(start)
            run = run_distance(exemplar.colours, ours + step, output.colours, theirs + step, mask, step)
            total = np.int32(total + run)
        ours += line
        theirs += other_line
    return _PARTS * np.int64(total) + exemplar.prices[candidate]


@njit(nogil=True, cache=True)
def _slack(border: int) -> int:
    """A window row's bytes rounded up to whole vectors: so much is read at once, and must exist behind the last."""
    return (3 * (2 * border + 1) + LANES - 1) // LANES * LANES
