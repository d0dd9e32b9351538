"""Tree-structured vector quantisation: an approximate nearest neighbour among n vectors in about log n steps.

Wei and Levoy, "Fast texture synthesis using tree-structured vector quantization", SIGGRAPH 2000, section 4, after
Gersho and Gray, "Vector quantization and signal compression", 1992. The codeword of a node is the centroid of its
training vectors, which the generalised Lloyd algorithm divides between two children. Centroids are rounded to integers,
so every distance, and thus every choice, is exact.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

# Vectors are zero-padded to a multiple of this length, so that vectorised loops have no remainder.
LANES = 32
# Iterations of the generalised Lloyd algorithm per split; further ones move few vectors.
_LLOYD_ITERATIONS = 4
# The largest number of vectors whose sums, and sums of squares, fit 32 bits: 255 * 255 * 2**15 < 2**32.
_MAX_SUMMED = 2**15


class Tree(NamedTuple):
    """Nodes in breadth-first order, the root first."""

    codewords: np.ndarray  # uint8 (N, D)
    children: np.ndarray  # int32 (N,): the first child of a node, the second follows it; -1 for a leaf
    vectors: np.ndarray  # int32 (N,): the training vector of a leaf nearest to its codeword


def pad(vectors: np.ndarray) -> np.ndarray:
    """Pad vectors uint8 (n, D) with zeros to a multiple of `LANES`."""
    return np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % LANES)))


@njit(nogil=True, cache=True)
def build_tree(vectors: np.ndarray, leaves: int) -> Tree:
    """Build the codebook of training vectors uint8 (n, D): a tree with at most `leaves` leaves.

    Nodes are split in breadth-first order until there are enough leaves, or until each leaf's vectors are all equal.
    """
    count, length = vectors.shape
    most = 2 * min(leaves, count) - 1
    codewords = np.empty((most, length), dtype=np.uint8)
    children = np.full(most, -1, dtype=np.int32)
    nearest = np.full(most, -1, dtype=np.int32)
    # A node's training vectors, in ascending order, are members[begins[node] : ends[node]].
    members = np.arange(count).astype(np.int32)
    begins, ends = np.zeros(most, dtype=np.int64), np.full(most, count, dtype=np.int64)
    sums = np.empty(length, dtype=np.int64)
    scratch = _make_scratch(count, length)
    nodes = 1
    node = 0
    while node < nodes:
        begin, end = begins[node], ends[node]
        group = members[begin:end]
        if len(group) == 1:
            codewords[node], nearest[node] = vectors[group[0]], group[0]
            node += 1
            continue
        _sum_up(vectors, group, scratch.ones[: len(group)], scratch.partial, sums)
        _divide(sums, len(group), codewords[node])
        cut = _split(vectors, group, sums, scratch) if nodes < most else 0
        if cut > 0:
            children[node] = nodes
            begins[nodes], ends[nodes] = begin, begin + cut
            begins[nodes + 1], ends[nodes + 1] = begin + cut, end
            nodes += 2
        else:
            nearest[node] = _nearest_member(vectors, group, codewords[node])
        node += 1
    return Tree(codewords[:nodes], children[:nodes], nearest[:nodes])


@njit(nogil=True, cache=True)
def find(tree: Tree, query: np.ndarray, backtrack: int, passed: np.ndarray) -> int:
    """Return the index of the training vector at the leaf whose codeword is nearest to query uint8 (D,).

    Best-first search: descend from the root to the nearer child until a leaf, then continue from the nearest node
    passed over, until `backtrack` leaves have been visited. On ties, the node with the lowest index is visited first
    and the vector with the lowest index wins.

    passed : int32 (2, N), scratch for the nodes passed over and their distances.
    """
    nodes, distances = passed
    nodes[0], distances[0] = 0, squared_distance(tree.codewords, 0, query)
    waiting = 1
    best, least = -1, np.int32(0)
    for _ in range(backtrack):
        if waiting == 0:
            break
        first = 0
        for k in range(1, waiting):
            if distances[k] < distances[first] or (distances[k] == distances[first] and nodes[k] < nodes[first]):
                first = k
        node, distance = nodes[first], distances[first]
        waiting -= 1
        nodes[first], distances[first] = nodes[waiting], distances[waiting]
        while tree.children[node] >= 0:
            node = tree.children[node]
            distance = squared_distance(tree.codewords, node, query)
            other = squared_distance(tree.codewords, node + 1, query)
            if other < distance:
                nodes[waiting], distances[waiting] = node, distance
                node, distance = node + 1, other
            else:
                nodes[waiting], distances[waiting] = node + 1, other
            waiting += 1
        if best < 0 or distance < least or (distance == least and tree.vectors[node] < best):
            best, least = tree.vectors[node], distance
    return best


@njit(nogil=True, cache=True)
def squared_distance(vectors: np.ndarray, number: int, other: np.ndarray) -> np.int32:
    """Return the squared distance between row `number` of vectors uint8 (n, D) and `other` uint8 (D,).

    Counting the references of a view takes as long as the distance, so the row is passed by index.
    """
    total = np.int32(0)
    for k in range(len(other)):
        difference = np.int32(np.int32(vectors[number, k]) - np.int32(other[k]))
        total += np.int32(difference * difference)
    return total


class _Scratch(NamedTuple):
    """Scratch memory of `build_tree`, reused because allocating it for each small group takes longer than a split."""

    ones: np.ndarray  # bool (n,): all True
    right: np.ndarray  # bool (n,): True for members of the second child
    nearer: np.ndarray  # bool (n,)
    second: np.ndarray  # int32 (n,)
    partial: np.ndarray  # uint32 (D,)
    squares: np.ndarray  # int64 (D,)
    sides: np.ndarray  # int64 (2, D): sums of each side
    centroids: np.ndarray  # uint8 (2, D)
    direction: np.ndarray  # int16 (D,)


@njit(nogil=True, cache=True)
def _make_scratch(count: int, length: int) -> _Scratch:
    return _Scratch(
        np.ones(count, dtype=np.bool_),
        np.empty(count, dtype=np.bool_),
        np.empty(count, dtype=np.bool_),
        np.empty(count, dtype=np.int32),
        np.empty(length, dtype=np.uint32),
        np.empty(length, dtype=np.int64),
        np.empty((2, length), dtype=np.int64),
        np.empty((2, length), dtype=np.uint8),
        np.empty(length, dtype=np.int16),
    )


@njit(nogil=True, cache=True)
def _sum_up(vectors: np.ndarray, group: np.ndarray, chosen: np.ndarray, partial: np.ndarray, sums: np.ndarray) -> int:
    """Write the sum of the chosen vectors of a group into sums int64 (D,); return their count. partial : scratch."""
    sums[:] = 0
    count = 0
    for begin in range(0, len(group), _MAX_SUMMED):
        partial[:] = 0
        for n in range(begin, min(begin + _MAX_SUMMED, len(group))):
            if chosen[n]:
                count += 1
                vector = vectors[group[n]]
                for k in range(len(partial)):
                    partial[k] += np.uint32(vector[k])
        for k in range(len(sums)):
            sums[k] += np.int64(partial[k])
    return count


@njit(nogil=True, cache=True)
def _divide(sums: np.ndarray, count: int, codeword: np.ndarray) -> None:
    """Write the centroid into `codeword`, rounded to the nearest integer (halves up)."""
    # float64 arithmetic is vectorised, and exact here, because a sum adds fewer than 2**40 bytes.
    for k in range(len(sums)):
        codeword[k] = np.uint8((2.0 * sums[k] + count) / (2.0 * count))


@njit(nogil=True, cache=True)
def _nearest_member(vectors: np.ndarray, group: np.ndarray, codeword: np.ndarray) -> int:
    best, least = group[0], squared_distance(vectors, group[0], codeword)
    for member in group[1:]:
        distance = squared_distance(vectors, member, codeword)
        if distance < least:
            best, least = member, distance
    return best


@njit(nogil=True, cache=True)
def _split(vectors: np.ndarray, group: np.ndarray, sums: np.ndarray, scratch: _Scratch) -> int:
    """Move the members of the first child to the front of the group, keeping their order; return their count.

    Return 0 if all vectors are equal. The initial split is at the mean of the dimension with the largest variance, as
    if the two codewords were the centroid shifted slightly to either side along it.

    sums : int64 (D,), sum of the group's vectors.
    """
    widest = _widest(vectors, group, sums, scratch.partial, scratch.squares)
    if widest < 0:
        return 0
    count = len(group)
    right, second = scratch.right[:count], scratch.second
    for n in range(count):
        right[n] = vectors[group[n], widest] * count > sums[widest]
    for _ in range(_LLOYD_ITERATIONS):
        if not _lloyd(vectors, group, sums, right, scratch):
            break
    left = 0
    for n in range(count):
        if right[n]:
            second[n - left] = group[n]
        else:
            group[left] = group[n]
            left += 1
    for n in range(left, count):
        group[n] = second[n - left]
    return left


@njit(nogil=True, cache=True)
def _widest(vectors: np.ndarray, group: np.ndarray, sums: np.ndarray, partial: np.ndarray, squares: np.ndarray) -> int:
    """Return the dimension with the largest variance; -1 if all vectors are equal. partial, squares : scratch."""
    count = len(group)
    squares[:] = 0
    for begin in range(0, count, _MAX_SUMMED):
        partial[:] = 0
        for member in group[begin : begin + _MAX_SUMMED]:
            vector = vectors[member]
            for k in range(len(partial)):
                value = np.uint32(vector[k])
                partial[k] += np.uint32(value * value)
        for k in range(len(squares)):
            squares[k] += np.int64(partial[k])
    widest, most = -1, 0
    for k in range(len(sums)):
        spread = count * squares[k] - sums[k] * sums[k]
        if spread > most:
            widest, most = k, spread
    return widest


@njit(nogil=True, cache=True)
def _lloyd(vectors: np.ndarray, group: np.ndarray, sums: np.ndarray, right: np.ndarray, scratch: _Scratch) -> bool:
    """Move each member to the side with the nearer centroid, the left one on ties; return whether any moved.

    Nothing moves if the right side would become empty, as happens when the rounded centroids are equal.
    """
    sides, centroids, direction, nearer = scratch.sides, scratch.centroids, scratch.direction, scratch.nearer
    count = _sum_up(vectors, group, right, scratch.partial, sides[1])
    for k in range(len(sums)):
        sides[0, k] = sums[k] - sides[1, k]
    _divide(sides[0], len(group) - count, centroids[0])
    _divide(sides[1], count, centroids[1])
    # |v - b|^2 < |v - a|^2 is equivalent to v (2a - 2b) < aa - bb: one product instead of two distances.
    limit = np.int32(0)
    for k in range(len(direction)):
        a, b = np.int32(centroids[0, k]), np.int32(centroids[1, k])
        direction[k] = 2 * (a - b)
        limit += np.int32(np.int32(a * a) - np.int32(b * b))
    found, moved = 0, 0
    for n in range(len(group)):
        vector = vectors[group[n]]
        product = np.int32(0)
        for k in range(len(vector)):
            product += np.int32(np.int32(vector[k]) * np.int32(direction[k]))
        nearer[n] = product < limit
        found += nearer[n]
        moved += nearer[n] != right[n]
    if moved == 0 or found == 0:
        return False
    for n in range(len(group)):
        right[n] = nearer[n]
    return True
