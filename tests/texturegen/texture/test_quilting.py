import numpy as np
import pytest

import tests.texturegen.texture.quilting_reference as reference
from tests.texturegen.texture.test_references import random_patches
from texturegen.errors import UserError
from texturegen.texture import synthesize
from texturegen.texture.kernels.cut import accumulate, trace

DEFAULTS = {"block": None, "overlap": None, "tolerance": 0.1}


@pytest.mark.parametrize(
    ("sides", "size", "seed", "settings"),
    [
        ([(12, 12)], (17, 19), 0, {}),
        ([(12, 15), (16, 12)], (23, 14), 1, {"block": 6, "overlap": 2}),
        ([(10, 9), (9, 11), (12, 12)], (15, 15), 2**63 - 1, {"block": 6, "overlap": 3}),
        ([(14, 14)], (20, 20), 3, {"block": 9, "overlap": 4, "tolerance": 0}),
        ([(12, 12)], (14, 14), 4, {"block": 6, "overlap": 3, "tolerance": 2}),
        ([(8, 8), (9, 9)], (1, 20), 5, {}),
        ([(9, 9)], (20, 2), 6, {"block": 7, "overlap": 3}),
        ([(8, 8)], (3, 4), 7, {"block": 8}),
        ([(10, 10)], (12, 12), 8, {"block": 2, "overlap": 1}),
        ([(24, 25), (24, 25)], (14, 14), 9, {"block": 8, "overlap": 3}),  # more candidates than a run
    ],
)
def test_equals_reference(sides, size, seed, settings):
    patches = random_patches(sides, seed % 100)
    texture = synthesize(patches, size, "quilting", seed, **settings)
    expected = reference.quilting(patches, size, seed, **{**DEFAULTS, **settings})
    np.testing.assert_array_equal(texture.source, expected)


@pytest.mark.parametrize(("length", "width", "levels"), [(1, 3, 9), (4, 1, 9), (5, 3, 9), (6, 4, 2), (4, 5, 1)])
def test_cut_is_the_cheapest_path(length, width, levels):
    errors = np.random.default_rng(0).integers(0, levels, (length, width))
    paths = [[column] for column in range(width)]
    for _ in range(length - 1):
        paths = [[*path, path[-1] + d] for path in paths for d in (-1, 0, 1) if 0 <= path[-1] + d < width]
    totals = accumulate(errors)
    for column in range(width):
        costs = {tuple(path): sum(errors[range(length), path]) for path in paths if path[-1] == column}
        assert totals[-1, column] == min(costs.values())
        assert costs[tuple(trace(totals, column))] == min(costs.values())


def test_smaller_column_wins_ties():
    np.testing.assert_array_equal(trace(accumulate(np.zeros((4, 4), np.int64)), 3), [0, 1, 2, 3])


def test_periodic_pattern_has_no_seams():
    y, x = np.mgrid[:24, :24]
    pattern = np.stack([(y % 4) * 50, (x % 4) * 50, ((y + x) % 4) * 50], axis=-1).astype(np.uint8)
    image = synthesize([pattern], (40, 41), "quilting", tolerance=0).image
    np.testing.assert_array_equal(image[4:], image[:-4])
    np.testing.assert_array_equal(image[:, 4:], image[:, :-4])


def test_largest_overlap_does_not_overflow():
    # The only candidate is black where the block is white, so its error is the largest possible.
    patch = np.zeros((96, 96, 3), np.uint8)
    patch[:, 48:] = 255
    texture = synthesize([patch], (96, 160), "quilting", block=96, overlap=32, tolerance=10)
    # All cuts cost the same, so the first one wins, along the left edge of the overlap.
    np.testing.assert_array_equal(texture.source[..., 2], np.tile(np.r_[:64, :96], (96, 1)))


def test_invalid_arguments_are_refused():
    patches = [np.zeros((20, 20, 3), np.uint8), np.zeros((20, 9, 3), np.uint8)]
    with pytest.raises(UserError, match=r"patch 1 is 20x9 pixels, too small for blocks of 10x10; .* a smaller block"):
        synthesize(patches, (8, 8), "quilting", block=10)
    with pytest.raises(UserError, match="'overlap' of method 'quilting' is 3; it must be at most half of 'block', 5"):
        synthesize(patches, (8, 8), "quilting", block=5, overlap=3)
