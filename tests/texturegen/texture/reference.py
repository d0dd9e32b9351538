"""Slow, simple references for texturegen.texture in plain Python and NumPy, without shared code.

Patches are integer arrays, positions are (patch, row, column), windows are gathered pixel by pixel.
"""

import math
from collections import Counter

import numpy as np

_WORD = 2**64 - 1


def derive(key: int, number: int) -> int:
    """Return the output of SplitMix64 for key + (number + 1) * golden ratio."""
    bits = (key + 0x9E3779B97F4A7C15 * (number + 1)) & _WORD
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _WORD
    return bits ^ (bits >> 31)


def draw(key: int, number: int, limit: int) -> int:
    return ((derive(key, number) >> 32) * limit) >> 32


def shuffled(items: list, key: int, count: int | None = None) -> list:
    items = list(items)
    for place in range(min(len(items) if count is None else count, len(items) - 1)):
        other = place + draw(key, place, len(items) - place)
        items[place], items[other] = items[other], items[place]
    return items


def pixel_list(patches):
    return [(p, y, x) for p, patch in enumerate(patches) for y in range(patch.shape[0]) for x in range(patch.shape[1])]


def look_up(patches, source):
    """Return the image of a source map given as lists of (patch, row, column)."""
    return np.array([[patches[p][y, x] for p, y, x in line] for line in source])


def halve(patch):
    """Apply binomial smoothing with mirrored edges, rounded once, and keep every second pixel."""
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])
    padded = np.pad(patch.astype(int), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    result = np.zeros(((patch.shape[0] + 1) // 2, (patch.shape[1] + 1) // 2, 3), dtype=int)
    for y in range(result.shape[0]):
        for x in range(result.shape[1]):
            square = padded[2 * y : 2 * y + 5, 2 * x : 2 * x + 5]
            result[y, x] = ((kernel[:, :, None] * square).sum(axis=(0, 1)) + 128) // 256
    return result


def scales_and_sizes(patches, size, levels):
    scales, sizes = [[patch.astype(int) for patch in patches]], [size]
    for _ in range(levels - 1):
        scales.append([halve(patch) for patch in scales[-1]])
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return scales, sizes


def efros_leung(patches, size, seed, window, epsilon):
    patches = [patch.astype(int) for patch in patches]
    height, width = size
    reach = window // 2
    weights = {}
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            weights[dy, dx] = math.exp(-(dy * dy + dx * dx) / (2 * (window / 6.4) ** 2))
    scale = (2**30 // (3 * 255 * 255) - window * window) / sum(weights.values())
    weights = {at: max(math.floor(weight * scale), 1) for at, weight in weights.items()}
    candidates = [
        (p, y, x)
        for p, y, x in pixel_list(patches)
        if reach <= y < patches[p].shape[0] - reach and reach <= x < patches[p].shape[1] - reach
    ]

    key = derive(seed, 0)
    p = draw(key, 0, len(patches))
    top, left = draw(key, 1, patches[p].shape[0] - 2), draw(key, 2, patches[p].shape[1] - 2)
    filled = {}
    for i in range(3):
        for j in range(3):
            at = (height // 2 - 1 + i, width // 2 - 1 + j)
            if 0 <= at[0] < height and 0 <= at[1] < width:
                filled[at] = (p, top + i, left + j)

    def filled_neighbours(at, known):
        return sum((at[0] + i, at[1] + j) in known for i in (-1, 0, 1) for j in (-1, 0, 1))

    round_number = 0
    while len(filled) < height * width:
        every = [(i, j) for i in range(height) for j in range(width)]
        ring = [at for at in every if at not in filled and filled_neighbours(at, filled) > 0]
        ring = shuffled(ring, derive(derive(seed, 2), round_number))
        ring.sort(key=lambda at: -filled_neighbours(at, filled))
        for i, j in ring:
            distances = []
            for p, y, x in candidates:
                total = 0
                for (dy, dx), weight in weights.items():
                    if (i + dy, j + dx) in filled:
                        q, v, u = filled[i + dy, j + dx]
                        total += weight * int(((patches[p][y + dy, x + dx] - patches[q][v, u]) ** 2).sum())
                distances.append(total)
            near = [c for c, d in zip(candidates, distances, strict=True) if d <= min(distances) * (1 + epsilon)]
            filled[i, j] = near[draw(derive(seed, 1), i * width + j, len(near))]
        round_number += 1
    return [[filled[i, j] for j in range(width)] for i in range(height)]


def tsvq_tree(vectors, leaves):
    """Return (codeword, first child or None, vector nearest to the codeword) of every node, breadth first."""
    vectors = vectors.astype(int)

    def centroid(group):
        return np.floor(vectors[group].sum(axis=0) / len(group) + 0.5).astype(int)

    def distance(member, codeword):
        return int(((vectors[member] - codeword) ** 2).sum())

    def split(group):
        spread = (len(group) * (vectors[group] ** 2).sum(axis=0)) - vectors[group].sum(axis=0) ** 2
        if spread.max() == 0:
            return None
        values = vectors[:, int(np.argmax(spread))]
        left = [m for m in group if values[m] * len(group) <= values[group].sum()]
        for _ in range(4):
            right = [m for m in group if m not in left]
            first, second = centroid(left), centroid(right)
            nearer = [m for m in group if distance(m, first) <= distance(m, second)]
            if not 0 < len(nearer) < len(group):
                break
            left = nearer
        return left, [m for m in group if m not in left]

    groups, nodes, count = [list(range(len(vectors)))], [], 1
    for group in groups:  # grows during the loop
        halves = split(group) if count < leaves else None
        codeword = centroid(group)
        nodes.append((codeword, len(groups) if halves else None, min(group, key=lambda m: (distance(m, codeword), m))))
        if halves:
            groups += halves
            count += 1
    return nodes


def tsvq_find(nodes, query, backtrack):
    def distance(node):
        return int(((nodes[node][0] - query) ** 2).sum())

    passed, found = {(distance(0), 0)}, []
    while passed and len(found) < backtrack:
        best = min(passed)
        passed.remove(best)
        node = best[1]
        while nodes[node][1] is not None:
            near, far = sorted((distance(child), child) for child in (nodes[node][1], nodes[node][1] + 1))
            passed.add(far)
            node = near[1]
        found.append((distance(node), nodes[node][2]))
    return min(found)[1]


def wei_levoy(patches, size, seed, window, levels, search, codebook, backtrack):
    scales, sizes = scales_and_sizes(patches, size, levels)
    reach = window // 2
    parent = None
    for level in reversed(range(levels)):
        exemplars, (height, width) = scales[level], sizes[level]
        key = derive(seed, level)
        pixels = pixel_list(exemplars)
        noise = [[pixels[draw(key, i * width + j, len(pixels))] for j in range(width)] for i in range(height)]
        image = look_up(exemplars, noise)
        causal = [(dy, dx) for dy in range(-reach, 1) for dx in range(-reach, reach + 1) if (dy, dx) < (0, 0)]
        around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        candidates, windows = [], []
        for p, y, x in pixels:
            side = exemplars[p].shape
            if y < reach or x < reach or x >= side[1] - reach:
                continue
            if parent is not None and not (2 <= y < side[0] - 2 and 2 <= x < side[1] - 2):
                continue
            found = [exemplars[p][y + dy, x + dx] for dy, dx in causal]
            if parent is not None:
                found += [scales[level + 1][p][y // 2 + dy, x // 2 + dx] for dy, dx in around]
            candidates.append((p, y, x))
            windows.append(np.concatenate(found))
        tree = tsvq_tree(np.array(windows), max(1, round(codebook * len(windows)))) if search == "tsvq" else None
        source = [[None] * width for _ in range(height)]
        for i in range(height):
            for j in range(width):
                wanted = [image[(i + dy) % height, (j + dx) % width] for dy, dx in causal]
                if parent is not None:
                    high, wide = parent.shape[:2]
                    wanted += [parent[(i // 2 + dy) % high, (j // 2 + dx) % wide] for dy, dx in around]
                if tree is None:
                    chosen = int(np.argmin(((np.array(windows) - np.concatenate(wanted)) ** 2).sum(axis=1)))
                else:
                    chosen = tsvq_find(tree, np.concatenate(wanted), backtrack)
                source[i][j] = candidates[chosen]
                image[i, j] = exemplars[source[i][j][0]][source[i][j][1:]]
        parent = image
    return source


def coherent(patches, size, seed, window, levels, block, first_passes, passes, last_passes, candidates, reuse, novelty):
    scales, sizes = scales_and_sizes(patches, size, levels)
    reach = window // 2
    if first_passes is None:
        first_passes = 15 if levels > 1 else 6
    if last_passes is None:
        last_passes = 2 if levels == 2 else 1
    source = []
    for level in reversed(range(levels)):
        exemplars, (height, width) = scales[level], sizes[level]
        padded = [np.pad(patch, ((reach, reach), (reach, reach), (0, 0)), mode="reflect") for patch in exemplars]
        key = derive(seed, level)
        coarse, source = source, [[None] * width for _ in range(height)]
        if level == levels - 1:
            number = 0
            for top in range(0, height, block):
                for left in range(0, width, block):
                    p = draw(derive(key, 0), 3 * number, len(exemplars))
                    tall, wide = min(block, exemplars[p].shape[0]), min(block, exemplars[p].shape[1])
                    y = draw(derive(key, 0), 3 * number + 1, exemplars[p].shape[0] - tall + 1)
                    x = draw(derive(key, 0), 3 * number + 2, exemplars[p].shape[1] - wide + 1)
                    number += 1
                    for i in range(min(block, height - top)):
                        for j in range(min(block, width - left)):
                            source[top + i][left + j] = (p, y + i % tall, x + j % wide)
        else:
            for i in range(height):
                for j in range(width):
                    p, y, x = coarse[i // 2][j // 2]
                    y, x = 2 * y + i % 2, 2 * x + j % 2
                    source[i][j] = (p, min(y, exemplars[p].shape[0] - 1), min(x, exemplars[p].shape[1] - 1))
        pixels = pixel_list(exemplars)
        inside = set(pixels)
        parts = 3 * window**2 * 256
        price = (reuse * parts // 4 ** (levels - 1 - level)) * len(pixels) // max(len(pixels), height * width)
        staying = novelty * parts // 3 ** (levels - 1 - level)
        uses = Counter(position for line in source for position in line)
        similar = {}
        subpasses = [0, 1, 2, 3]
        for number in range(first_passes if level == levels - 1 else passes if level else last_passes):
            pass_key = derive(key, number + 1)
            subpasses = shuffled(subpasses, derive(pass_key, 0))
            for i, j in [(i, j) for s in subpasses for i in range(s // 2, height, 2) for j in range(s % 2, width, 2)]:
                image = look_up(exemplars, source)
                rows = [(i + dy) % height for dy in range(-reach, reach + 1)]
                columns = [(j + dx) % width for dx in range(-reach, reach + 1)]
                wanted = image[np.ix_(rows, columns)]
                own = source[i][j]
                uses[own] -= 1
                tries = [own]
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        p, y, x = source[(i + dy) % height][(j + dx) % width]
                        tries.append((p, y - dy, x - dx))
                tries += [similar.get(place, place) for place in tries]
                for k in range(candidates):
                    tries.append(pixels[draw(derive(pass_key, 1), (i * width + j) * candidates + k, len(pixels))])
                costs = []
                for place in tries:
                    cost = math.inf
                    if place in inside:
                        p, y, x = place
                        difference = np.abs(padded[p][y : y + window, x : x + window] - wanted).sum()
                        cost = 256 * int(difference) + price * uses[place] + staying * (place == own)
                    costs.append(cost)
                best = tries[int(np.argmin(costs))]
                source[i][j] = best
                uses[best] += 1
                if best != own:
                    similar[own], similar[best] = best, own
    return source


def window_list(images, window=7):
    return [
        ((n, y, x), image[y : y + window, x : x + window].astype(int))
        for n, image in enumerate(images)
        for y in range(image.shape[0] - window + 1)
        for x in range(image.shape[1] - window + 1)
    ]


def nearest_window(window, others):
    """Return (position, RMS distance) of the nearest of the others; the first wins ties."""
    distances = [int(((window - other) ** 2).sum()) for _, other in others]
    best = int(np.argmin(distances))
    return others[best][0], math.sqrt(distances[best] / window.size)


def window_figures(patches, texture):
    """Return coherence, completeness and verbatim over all windows."""
    of_patches, of_texture = window_list(patches), window_list([texture])
    nearest = {at: nearest_window(window, of_patches) for at, window in of_texture}
    pairs = [(at, (0, at[1], at[2] + 1)) for at in nearest if (0, at[1], at[2] + 1) in nearest]
    adjacent = []
    for left, right in pairs:
        p, y, x = nearest[left][0]
        adjacent.append(nearest[right][0] == (p, y, x + 1))
    completeness = [nearest_window(window, of_texture)[1] for _, window in of_patches]
    return (
        np.mean([distance for _, distance in nearest.values()]),
        np.mean(completeness),
        np.mean(adjacent) if adjacent else math.nan,
    )


def autocorrelation(images, dy, dx):
    """Return the normalised autocorrelation at one shift, with the pairs of pixels of all images pooled."""
    first, second = [], []
    for image in images:
        grey = (image.astype(int) @ [299, 587, 114] + 500) // 1000
        for y in range(grey.shape[0]):
            for x in range(grey.shape[1]):
                if 0 <= y + dy < grey.shape[0] and 0 <= x + dx < grey.shape[1]:
                    first.append(grey[y, x])
                    second.append(grey[y + dy, x + dx])
    if not first:
        return math.nan
    variance = (np.var(first) + np.var(second)) / 2
    return 1.0 if variance == 0 else np.mean((first - np.mean(first)) * (second - np.mean(second))) / variance


def largest_copy(patches, source):
    """Return the largest region of one patch and offset, as a fraction of its patch, by flood fill."""
    height, width = source.shape[:2]
    offsets = {(i, j): tuple(source[i, j] - (0, i, j)) for i in range(height) for j in range(width)}
    share, left = 0, dict(offsets)
    while left:
        at, offset = left.popitem()
        region, open_ends = 1, [at]
        while open_ends:
            i, j = open_ends.pop()
            for neighbour in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if left.get(neighbour) == offset:
                    del left[neighbour]
                    region += 1
                    open_ends.append(neighbour)
        height_of_patch, width_of_patch = patches[offset[0]].shape[:2]
        share = max(share, region / (height_of_patch * width_of_patch))
    return share
