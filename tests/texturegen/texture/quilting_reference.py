"""Slow, simple references for the methods that cut and copy blocks, without shared code.

Patches are integer arrays, positions are (patch, row, column), errors of pixels are dicts by (row, column).
"""

import math

import numpy as np

from tests.texturegen.texture.reference import derive, draw


def colour_error(patches, one, other):
    (p, y, x), (q, v, u) = one, other
    return int(((patches[p][y, x].astype(int) - patches[q][v, u]) ** 2).sum())


def cheapest_paths(lines, moves):
    """Return (cost, path) of the cheapest path to every cell of the last line; the smaller cell wins a tie.

    lines: dicts from a cell to its error. moves: by how much the cell may grow from line to line.
    """
    found = {cell: (error, [cell]) for cell, error in lines[0].items()}
    for line in lines[1:]:
        before, found = found, {}
        for cell, error in line.items():
            ways = [before[other] for other in sorted(before) if cell - other in moves]
            if ways:
                cost, path = min(ways, key=lambda way: way[0])
                found[cell] = (cost + error, [*path, cell])
    return found


def first_least(ends):
    return min(ends, key=lambda end: end[0])[1:]


def quilting_cut(error, tall, wide, above, before):
    """Return the pixels (i, j) of a block that are copied; `error` gives the errors in the overlaps."""

    def up(row):
        """Return the paths in the left overlap, from the last row to this one."""
        return cheapest_paths(
            [{j: error[i, j] for j in range(before)} for i in range(tall - 1, row - 1, -1)], (-1, 0, 1)
        )

    def along(column):
        return cheapest_paths(
            [{i: error[i, j] for i in range(above)} for j in range(wide - 1, column - 1, -1)], (-1, 0, 1)
        )

    everything = {(i, j) for i in range(tall) for j in range(wide)}
    if before and above:
        ups, alongs = [up(row) for row in range(above)], [along(column) for column in range(before)]
        meetings = [(ups[i][j][0] + alongs[j][i][0] - error[i, j], i, j) for i in range(above) for j in range(before)]
        row, column = first_least(meetings)
        columns, rows = ups[row][column][1][::-1], alongs[column][row][1][::-1]
    elif before:
        row, column = 0, 0
        columns, rows = first_least(up(0).values())[0][::-1], [0] * wide
    elif above:
        row, column = 0, 0
        columns, rows = [0] * tall, first_least(along(0).values())[0][::-1]
    else:
        return everything
    # Above the point where the paths meet, only the path along the upper overlap applies; to its left, only the other.
    return {
        (i, j)
        for i, j in everything
        if (i >= row or j >= column) and (i < row or j >= columns[i - row]) and (j < column or i >= rows[j - column])
    }


def quilting(patches, size, seed, block, overlap, tolerance):
    height, width = size
    if block is None:
        block = min(min(patch.shape[:2]) for patch in patches) // 2
    if overlap is None:
        overlap = max(block // 6, 1)
    candidates = [
        (p, y, x)
        for p, patch in enumerate(patches)
        for y in range(patch.shape[0] - block + 1)
        for x in range(patch.shape[1] - block + 1)
    ]
    source, number = {}, 0
    top = 0
    while top == 0 or top + overlap < height:
        left = 0
        while left == 0 or left + overlap < width:
            pixels = [(i, j) for i in range(block) for j in range(block) if top + i < height and left + j < width]
            known = [(i, j) for i, j in pixels if (top + i, left + j) in source]
            totals = [
                sum(colour_error(patches, (p, y + i, x + j), source[top + i, left + j]) for i, j in known)
                for p, y, x in candidates
            ]
            near = [c for c, total in zip(candidates, totals, strict=True) if total <= min(totals) * (1 + tolerance)]
            p, y, x = near[draw(seed, number, len(near))]
            error = {(i, j): colour_error(patches, (p, y + i, x + j), source[top + i, left + j]) for i, j in known}
            tall, wide = min(block, height - top), min(block, width - left)
            for i, j in quilting_cut(error, tall, wide, min(overlap, top, tall), min(overlap, left, wide)):
                source[top + i, left + j] = (p, y + i, x + j)
            number += 1
            left += block - overlap
        top += block - overlap
    return [[source[i, j] for j in range(width)] for i in range(height)]


def wang_tiles(patches, size, seed, tile, colors, tries):
    height, width = size
    if tile is None:
        tile = 2 * (min(min(patch.shape[:2]) for patch in patches) // 3)
    half = tile // 2

    def in_sample(sample, i, j, horizontal):
        """Return the position of a tile's pixel in the sample of an edge, which bisects the sample."""
        p, y, x = sample
        down = (half if i < half else -half) if horizontal else 0
        right = 0 if horizontal else (half if j < half else -half)
        return p, y + i + down, x + j + right

    def quarter(upper, left, south, east):
        """Return (cost, source of every pixel) of a quarter of a tile; upper may be lower, left may be right."""

        def at(r, c):
            return tile - 1 - r if south else r, tile - 1 - c if east else c

        lines = [
            {
                c: colour_error(patches, in_sample(upper, *at(r, c), True), in_sample(left, *at(r, c), False))
                for c in range(half)
                if (r == 0) == (c == 0)
            }
            for r in range(half)
        ]
        cost, path = cheapest_paths(lines, (0, 1, 2))[half - 1]
        pixels = {
            at(r, c): in_sample(upper, *at(r, c), True) if c >= path[r] else in_sample(left, *at(r, c), False)
            for r in range(half)
            for c in range(half)
        }
        return cost, pixels

    least = math.inf
    for number in range(tries):
        key = derive(derive(seed, 0), number)
        first = draw(key, 0, len(patches))
        samples = []
        for n in range(2 * colors):
            p = (first + n) % len(patches)
            y = draw(key, 2 * n + 1, patches[p].shape[0] - tile + 1)
            x = draw(key, 2 * n + 2, patches[p].shape[1] - tile + 1)
            samples.append((p, y, x))
        quarters = {
            (a, b, south, east): quarter(samples[2 * a], samples[2 * b + 1], south, east)
            for a in range(colors)
            for b in range(colors)
            for south in (False, True)
            for east in (False, True)
        }
        total = sum(cost for cost, _ in quarters.values())
        if total < least:
            least, best = total, quarters

    down, across = math.ceil(height / tile), math.ceil(width / tile)
    key = derive(seed, 1)
    upper = {(y, x): draw(key, 2 * (y * across + x), colors) for y in range(down) for x in range(across)}
    left = {(y, x): draw(key, 2 * (y * across + x) + 1, colors) for y in range(down) for x in range(across)}
    source = [[None] * width for _ in range(height)]
    for row in range(height):
        for column in range(width):
            y, i = divmod(row, tile)
            x, j = divmod(column, tile)
            south, east = i >= half, j >= half
            a, b = upper[(y + south) % down, x], left[y, (x + east) % across]
            source[row][column] = best[a, b, south, east][1][i, j]
    return source


def patch_shuffle(patches, size, seed, smallest, largest):
    height, width = size
    cell = smallest + draw(derive(seed, 0), 0, largest - smallest + 1)
    source = np.full((height, width, 3), -1)
    number, key = 0, derive(seed, 1)
    for top in range(0, height, cell):
        for left in range(0, width, cell):
            p = draw(key, 3 * number, len(patches))
            y = draw(key, 3 * number + 1, patches[p].shape[0] - cell + 1)
            x = draw(key, 3 * number + 2, patches[p].shape[1] - cell + 1)
            for i in range(top, min(top + cell, height)):
                for j in range(left, min(left + cell, width)):
                    source[i, j] = p, y + i - top, x + j - left
            number += 1
    return source
