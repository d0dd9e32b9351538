import numpy as np
import pytest

import tests.texturegen.texture.reference as reference
from texturegen.texture.kernels.tsvq import LANES, Tree, _lloyd, _make_scratch, build_tree, find, pad


def some_vectors(count, length, seed=0, levels=256):
    """Clustered vectors; with few levels, many of them are equal."""
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, levels, (5, length))
    moved = centres[generator.integers(0, 5, count)] + generator.integers(-1, 2, (count, length))
    return np.clip(moved * (255 // (levels - 1)), 0, 255).astype(np.uint8)


def queries(vectors, seed=1):
    """Queries near the training vectors, equally near to several codewords, and others."""
    generator = np.random.default_rng(seed)
    mixed = generator.choice(vectors.ravel(), (30, vectors.shape[1]))
    near = np.clip(vectors[:20] + generator.integers(-40, 41, vectors[:20].shape), 0, 255)
    return np.concatenate([near, mixed, generator.integers(0, 256, (10, vectors.shape[1]))]).astype(np.uint8)


def scratch(tree):
    return np.empty((2, len(tree.codewords)), dtype=np.int32)


shapes = pytest.mark.parametrize(
    ("count", "length", "levels", "leaves"),
    [
        (1, 5, 256, 1),
        (2, 3, 256, 2),
        (60, 7, 256, 60),
        (60, 7, 256, 13),
        (80, 40, 2, 80),
        (40, 3, 3, 40),
        (70, 1, 4, 9),
        (90, 8, 2, 90),
    ],
)


@shapes
def test_tree_equals_reference(count, length, levels, leaves):
    vectors = some_vectors(count, length, levels=levels)
    tree, nodes = build_tree(vectors, leaves), reference.tsvq_tree(vectors, leaves)
    assert len(tree.codewords) == len(nodes)
    for n, (codeword, child, nearest) in enumerate(nodes):
        np.testing.assert_array_equal(tree.codewords[n], codeword)
        assert tree.children[n] == (-1 if child is None else child)
        assert tree.vectors[n] == (nearest if child is None else -1)


@shapes
@pytest.mark.parametrize("backtrack", [1, 2, 5, 20, 1000])
def test_search_equals_reference(count, length, levels, leaves, backtrack):
    vectors = some_vectors(count, length, levels=levels)
    tree, nodes = build_tree(vectors, leaves), reference.tsvq_tree(vectors, leaves)
    for query in queries(vectors):
        assert find(tree, query, backtrack, scratch(tree)) == reference.tsvq_find(nodes, query, backtrack)


@shapes
def test_visiting_all_leaves_finds_nearest_codeword(count, length, levels, leaves):
    tree = build_tree(some_vectors(count, length, levels=levels), leaves)
    ends = np.flatnonzero(tree.children < 0)
    for query in queries(some_vectors(count, length, levels=levels)):
        distances = ((tree.codewords[ends].astype(int) - query) ** 2).sum(axis=1)
        found = find(tree, query, len(ends), scratch(tree))
        assert distances[list(tree.vectors[ends]).index(found)] == distances.min()


def test_lowest_node_wins_ties():
    codewords = np.array([100, 100, 103, 100, 104, 101, 96, 100, 120], np.uint8)[:, None]
    children = np.array([1, 3, -1, 5, 7, -1, -1, -1, -1], np.int32)
    tree = Tree(codewords, children, np.arange(9, dtype=np.int32))
    query = np.array([100], np.uint8)
    # Leaf 5 is visited first, then 2; nodes 4, which leads to 7, and 6 remain.
    assert [find(tree, query, backtrack, scratch(tree)) for backtrack in (1, 2, 3)] == [5, 5, 7]


def test_full_codebook_finds_every_distinct_vector():
    vectors = some_vectors(300, 6, levels=4)
    tree = build_tree(vectors, len(vectors))
    different = np.unique(vectors, axis=0)
    assert len(different) < len(vectors)
    np.testing.assert_array_equal(np.unique(tree.codewords[tree.children < 0], axis=0), different)
    for vector in vectors:
        np.testing.assert_array_equal(vectors[find(tree, vector, 1000, scratch(tree))], vector)


def test_equal_vectors_are_one_leaf():
    tree = build_tree(np.full((9, 4), 200, np.uint8), 9)
    assert len(tree.codewords) == 1
    assert tree.vectors[0] == 0


def test_equal_centroids_move_no_member():
    vectors = np.array([[0], [2], [0], [2]], np.uint8)
    right = np.array([False, False, True, True])
    assert not _lloyd(vectors, np.arange(4, dtype=np.int32), np.array([4]), right, _make_scratch(4, 1))
    assert right.tolist() == [False, False, True, True]


def test_pad():
    padded = pad(np.ones((2, LANES + 1), np.uint8))
    assert padded.shape == (2, 2 * LANES)
    assert padded.sum() == 2 * (LANES + 1)
    assert pad(padded).shape == padded.shape
