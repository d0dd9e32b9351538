from collections import defaultdict

import numpy as np
import pytest

import tests.texturegen.texture.quilting_reference as reference
from tests.texturegen.texture.test_references import random_patches
from texturegen.errors import UserError
from texturegen.texture import synthesize

DEFAULTS = {"tile": None, "colors": 4, "tries": 8}


@pytest.mark.parametrize(
    ("sides", "size", "seed", "settings"),
    [
        ([(12, 12)], (24, 24), 0, {}),
        ([(12, 15), (16, 11)], (23, 30), 1, {"tile": 10, "colors": 2, "tries": 3}),
        ([(8, 9), (9, 8), (8, 8)], (15, 15), 2**63 - 1, {"tile": 4, "colors": 3}),
        ([(14, 14)], (20, 20), 3, {"tile": 14, "colors": 1, "tries": 1}),
        ([(20, 19)], (33, 17), 4, {"tile": 16, "colors": 2}),
        ([(8, 8), (9, 9)], (1, 20), 5, {"tile": 6}),
        ([(9, 9)], (2, 3), 6, {"tile": 8}),
    ],
)
def test_equals_reference(sides, size, seed, settings):
    patches = random_patches(sides, seed % 100)
    texture = synthesize(patches, size, "wang-tiles", seed, **settings)
    expected = reference.wang_tiles(patches, size, seed, **{**DEFAULTS, **settings})
    np.testing.assert_array_equal(texture.source, expected)


def tiling(tile=10, across=9, colors=2):
    """Return the source map as (y, i, x, j, 3), for tiles y, x and their pixels i, j."""
    patches = random_patches([(32, 33), (29, 31)], 0)
    source = synthesize(patches, (tile * across,) * 2, "wang-tiles", 1, tile=tile, colors=colors).source
    return source.reshape(across, tile, across, tile, 3)


def edge_samples(source):
    """Return the corners of the samples of the upper, lower, left and right edge of every tile, (y, x, 4, 3)."""
    tile, half = source.shape[1], source.shape[1] // 2
    above = source[:, 0, :, half] - (0, half, half)
    below = source[:, -1, :, half] - (0, half - 1, half)
    left = source[:, half, :, 0] - (0, half, half)
    right = source[:, half, :, tile - 1] - (0, half, half - 1)
    return np.stack([above, below, left, right], axis=2)


def test_edges_match_and_wrap_around():
    samples = edge_samples(tiling())
    for axis, (before, after) in enumerate([(1, 0), (3, 2)]):
        np.testing.assert_array_equal(samples[:, :, before], np.roll(samples[:, :, after], -1, axis=axis))
    # Two colours of horizontal and two of vertical edges, all in use.
    assert len(np.unique(samples[:, :, 0].reshape(-1, 3), axis=0)) == 2
    assert len(np.unique(samples[:, :, 2].reshape(-1, 3), axis=0)) == 2


def test_pixels_continue_across_edges():
    source = tiling()
    np.testing.assert_array_equal(
        np.roll(source[:, 0], -1, axis=0) - source[:, -1], np.broadcast_to((0, 1, 0), source[:, 0].shape)
    )
    # The ends of the vertical edges belong to the horizontal ones.
    steps = np.roll(source[:, 1:-1, :, 0], -1, axis=2) - source[:, 1:-1, :, -1]
    np.testing.assert_array_equal(steps, np.broadcast_to((0, 0, 1), steps.shape))


def test_edges_determine_tile_and_every_tile_occurs():
    source = tiling()
    samples = edge_samples(source)
    tiles = defaultdict(set)
    for y in range(len(source)):
        for x in range(source.shape[2]):
            tiles[samples[y, x].tobytes()].add(source[y, :, x].tobytes())
    assert len(tiles) == 2**4
    assert all(len(fillings) == 1 for fillings in tiles.values())


def test_tile_consists_of_samples_of_its_edges():
    source = tiling()
    half = source.shape[1] // 2
    samples = edge_samples(source)
    i, j = np.mgrid[: 2 * half, : 2 * half]
    zero = np.zeros_like(i)
    upright, lying = np.stack([zero, (i + half) % (2 * half), j], -1), np.stack([zero, i, (j + half) % (2 * half)], -1)
    for y in range(len(source)):
        for x in range(source.shape[2]):
            of = [(source[y, :, x] == samples[y, x, n] + (upright, lying)[n // 2]).all(axis=-1) for n in range(4)]
            assert np.logical_or.reduce(of).all()
            # The middle of each edge shows its own sample, down to the centre of the tile.
            assert of[0][:half, half].all()
            assert of[1][half:, half].all()


def test_more_tries_give_cheaper_cuts():
    patches = random_patches([(40, 40)], 3)
    differences = []
    for tries in (1, 5, 60):
        # Colour differences between neighbours in a large tiling, where every tile occurs often.
        image = synthesize(patches, (240, 240), "wang-tiles", 5, tile=12, colors=2, tries=tries).image.astype(int)
        differences.append((np.diff(image, axis=1) ** 2).sum() + (np.diff(image, axis=0) ** 2).sum())
    assert differences[2] < differences[0]


def test_invalid_arguments_are_refused():
    patches = [np.zeros((20, 20, 3), np.uint8), np.zeros((20, 9, 3), np.uint8)]
    with pytest.raises(UserError, match=r"patch 1 is 20x9 pixels, too small for tiles of 10x10; .* a smaller tile"):
        synthesize(patches, (8, 8), "wang-tiles", tile=10)
    with pytest.raises(UserError, match=r"'tile' of method 'wang-tiles' must be even, .*, not 7"):
        synthesize(patches, (8, 8), "wang-tiles", tile=7)
