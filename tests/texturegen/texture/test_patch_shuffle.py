import numpy as np
import pytest

import tests.texturegen.texture.quilting_reference as reference
from tests.texturegen.texture.test_references import random_patches
from texturegen.errors import UserError
from texturegen.texture import synthesize


@pytest.mark.parametrize(
    ("sides", "size", "seed", "smallest", "largest"),
    [
        ([(12, 12)], (20, 21), 0, 3, 9),
        ([(12, 15), (16, 11)], (23, 30), 1, 5, 5),
        ([(8, 9), (9, 8), (8, 8)], (7, 40), 2**63 - 1, 1, 8),
        ([(30, 30)], (11, 12), 3, 20, 30),
    ],
)
def test_equals_reference(sides, size, seed, smallest, largest):
    patches = random_patches(sides, 0)
    texture = synthesize(patches, size, "patch-shuffle", seed, smallest=smallest, largest=largest)
    expected = reference.patch_shuffle(patches, size, seed, smallest, largest)
    np.testing.assert_array_equal(texture.source, expected)


def cell_sides(patches, size, **settings):
    """Return the sides of the cells of many textures: how far the first cell continues."""
    sides = set()
    for seed in range(400):
        row = synthesize(patches, size, "patch-shuffle", seed, **settings).source[0]
        breaks = np.flatnonzero((np.diff(row, axis=0) != (0, 0, 1)).any(axis=1)) + 1
        sides.add(int(np.gcd.reduce(breaks)) if len(breaks) else size[1])
    return sides


@pytest.mark.parametrize(
    ("patch", "size", "settings", "smallest", "largest"),
    [
        (96, (224, 224), {}, 16, 72),  # Ge et al.
        (96, (96, 112), {}, 7, 31),
        (16, (32, 32), {}, 4, 10),
        (8, (224, 224), {}, 8, 8),
        (96, (112, 224), {"smallest": 30}, 30, 36),
        (96, (112, 224), {"smallest": 50}, 50, 50),
        (96, (112, 224), {"largest": 9}, 8, 9),
        (96, (112, 224), {"largest": 5}, 5, 5),
    ],
)
def test_cell_sides_span_the_range(patch, size, settings, smallest, largest):
    patches = [np.zeros((patch, patch, 3), np.uint8)] * 2
    sides = cell_sides(patches, size, **settings)
    assert min(sides) == smallest
    assert max(side for side in sides if side < size[1]) == largest
    assert len(sides) >= 0.9 * (largest - smallest + 1)


def test_invalid_arguments_are_refused():
    patches = [np.zeros((20, 20, 3), np.uint8), np.zeros((20, 9, 3), np.uint8)]
    with pytest.raises(UserError, match=r"patch 1 is 20x9 pixels, too small for cells of 10x10; .* a smaller cell"):
        synthesize(patches, (8, 8), "patch-shuffle", largest=10)
    with pytest.raises(UserError, match="'smallest' of method 'patch-shuffle' is 5, above 'largest', 4; lower it"):
        synthesize(patches, (8, 8), "patch-shuffle", smallest=5, largest=4)
