"""Tree-structured vector quantisation: a near neighbour among n vectors in about log n steps.

Wei and Levoy, "Fast texture synthesis using tree-structured vector quantization", SIGGRAPH 2000, section 4, after
Gersho and Gray, "Vector quantization and signal compression", 1992: every node holds the centroid of its training
vectors as its codeword, and splits them in two with the generalised Lloyd algorithm. Centroids are rounded to whole
numbers, so that every distance and thus every choice is exact.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

# Vectors are as long as a multiple of this, filled up with zeros: the compiler's vector loops then leave no remainder.
LANES = 32
# Of generalised Lloyd, per split. The split settles within a few; more cost time and change few members.
_ROUNDS = 4


class Tree(NamedTuple):
    """Nodes in breadth-first order, the root first."""

    codewords: np.ndarray  # uint8 (N, D)
    children: np.ndarray  # int32 (N,): the first of a node's two children, the other follows it; -1 for a leaf
    vectors: np.ndarray  # int32 (N,): of a node's training vectors the one nearest to its codeword


def pad(vectors: np.ndarray) -> np.ndarray:
    """Fill vectors uint8 (n, D) up with zeros to whole `LANES`."""
    return np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % LANES)))


@njit(nogil=True, cache=True)
def build_tree(vectors: np.ndarray, leaves: int) -> Tree:
    """Build the codebook of training vectors uint8 (n, D): a tree with at most so many leaves.

    Nodes are split in breadth-first order, until there are enough leaves or none has different vectors.
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
    nodes = 1
    node = 0
    while node < nodes:
        begin, end = begins[node], ends[node]
        group = members[begin:end]
        _sum_up(vectors, group, sums)
        _divide(sums, len(group), codewords[node])
        cut = _split(vectors, group, sums) if nodes < most else 0
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
    """Return the number of the training vector of the leaf whose codeword is nearest to query uint8 (D,).

    Best first: from the root to the nearer child down to a leaf, then, until `backtrack` leaves were visited, on from
    the nearest node passed by. Of codewords equally near, the lowest node goes first and the lowest vector wins.
    passed: scratch int32 (2, N), for the nodes passed by and their distances.
    """
    nodes, distances = passed
    nodes[0], distances[0] = 0, squared_distance(tree.codewords[0], query)
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
            distance = squared_distance(tree.codewords[node], query)
            other = squared_distance(tree.codewords[node + 1], query)
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
def squared_distance(vector: np.ndarray, other: np.ndarray) -> np.int32:
    """Squared distance of two vectors uint8 (D,)."""
    total = np.int32(0)
    for k in range(len(vector)):
        difference = np.int32(np.int32(vector[k]) - np.int32(other[k]))
        total += np.int32(difference * difference)
    return total


@njit(nogil=True, cache=True)
def _sum_up(vectors: np.ndarray, group: np.ndarray, sums: np.ndarray) -> None:
    sums[:] = 0
    for member in group:
        vector = vectors[member]
        for k in range(len(sums)):
            sums[k] += np.int64(vector[k])


@njit(nogil=True, cache=True)
def _divide(sums: np.ndarray, count: int, codeword: np.ndarray) -> None:
    """Write the centroid into `codeword`, rounded to the nearest whole number (halves up)."""
    for k in range(len(sums)):
        codeword[k] = (2 * sums[k] + count) // (2 * count)


@njit(nogil=True, cache=True)
def _nearest_member(vectors: np.ndarray, group: np.ndarray, codeword: np.ndarray) -> int:
    best, least = group[0], squared_distance(vectors[group[0]], codeword)
    for member in group[1:]:
        distance = squared_distance(vectors[member], codeword)
        if distance < least:
            best, least = member, distance
    return best


@njit(nogil=True, cache=True)
def _split(vectors: np.ndarray, group: np.ndarray, sums: np.ndarray) -> int:
    """Move the members of the first child to the group's front, keeping their order; return how many they are.

    0 if all vectors are equal. The two codewords start as the centroid moved a little to either side in the widest
    dimension, which splits the members at their mean there.
    """
    widest = _widest(vectors, group, sums)
    if widest < 0:
        return 0
    right = np.empty(len(group), dtype=np.bool_)
    for n in range(len(group)):
        right[n] = vectors[group[n], widest] * len(group) > sums[widest]
    for _ in range(_ROUNDS):
        if not _lloyd(vectors, group, right):
            break
    first, second = group[~right], group[right]
    group[: len(first)] = first
    group[len(first) :] = second
    return len(first)


@njit(nogil=True, cache=True)
def _widest(vectors: np.ndarray, group: np.ndarray, sums: np.ndarray) -> int:
    """Return the dimension with the largest variance, -1 if all vectors are equal."""
    count = len(group)
    squares = np.zeros(len(sums), dtype=np.int64)
    for member in group:
        vector = vectors[member]
        for k in range(len(sums)):
            value = np.int32(vector[k])
            squares[k] += np.int64(np.int32(value * value))
    widest, most = -1, 0
    for k in range(len(sums)):
        spread = count * squares[k] - sums[k] * sums[k]
        if spread > most:
            widest, most = k, spread
    return widest


@njit(nogil=True, cache=True)
def _lloyd(vectors: np.ndarray, group: np.ndarray, right: np.ndarray) -> bool:
    """Move each member to the side with the nearer centroid, the left one among equals; return whether any moved.

    Nothing moves if the right side would lose all, which rounded centroids, being equal, may do.
    """
    sums = np.empty(vectors.shape[1], dtype=np.int64)
    centroids = np.empty((2, vectors.shape[1]), dtype=np.uint8)
    for side in range(2):
        members = group[right == (side == 1)]
        _sum_up(vectors, members, sums)
        _divide(sums, len(members), centroids[side])
    nearer = np.empty(len(group), dtype=np.bool_)
    count, moved = 0, 0
    for n in range(len(group)):
        vector = vectors[group[n]]
        nearer[n] = squared_distance(vector, centroids[1]) < squared_distance(vector, centroids[0])
        count += nearer[n]
        moved += nearer[n] != right[n]
    if moved == 0 or count == 0:
        return False
    right[:] = nearer
    return True
