"""Every method equals its slow reference, pixel by pixel."""

import numpy as np
import pytest
from skimage import data

import tests.texturegen.texture.reference as reference
from benchmarks.naive import naive_efros_leung, naive_wei_levoy
from texturegen.texture import resolve_settings, synthesize


def random_patches(sides, seed):
    """Return patches with smooth ramps, edges and equal colours, so that ties occur."""
    generator = np.random.default_rng(seed)
    patches = []
    for height, width in sides:
        y, x = np.mgrid[:height, :width]
        waves = np.sin(y[..., None] * generator.uniform(0.3, 2, 3) + x[..., None] * generator.uniform(0.3, 2, 3))
        coarse = np.round(waves * 3 + generator.normal(0, 0.4, (height, width, 1))) * 35
        patches.append(np.clip(coarse + 128, 0, 255).astype(np.uint8))
    return patches


def check(method, sides, size, seed, **settings):
    check_patches(method, random_patches(sides, seed), size, seed, **settings)


def check_patches(method, patches, size, seed, **settings):
    texture = synthesize(patches, size, method, seed, **settings)
    expected = getattr(reference, method.replace("-", "_"))(
        patches, size, seed, **{**resolve_settings(method, settings), **settings}
    )
    np.testing.assert_array_equal(texture.source, expected)
    np.testing.assert_array_equal(texture.image, reference.look_up(patches, expected))


@pytest.mark.parametrize(
    ("sides", "size", "seed", "settings"),
    [
        ([(8, 8)], (9, 9), 0, {}),
        ([(9, 12), (12, 8)], (7, 11), 1, {}),
        ([(8, 9), (10, 8), (9, 9)], (8, 8), 2**63 - 1, {"window": 5}),
        ([(8, 8), (11, 9)], (10, 6), 3, {"window": 3, "epsilon": 0.5}),
        ([(8, 8)], (6, 6), 4, {"epsilon": 0}),
        ([(8, 8)], (1, 12), 5, {}),
        ([(8, 8)], (2, 2), 6, {}),
    ],
)
def test_efros_leung(sides, size, seed, settings):
    check("efros-leung", sides, size, seed, **settings)


@pytest.mark.parametrize(
    ("sides", "size", "seed", "settings"),
    [
        ([(8, 8)], (9, 9), 0, {"levels": 1}),
        ([(9, 9)], (8, 10), 1, {"levels": 2}),
        ([(10, 13), (12, 9)], (11, 7), 2**63 - 1, {"levels": 2}),
        ([(11, 11), (9, 14), (10, 10)], (9, 9), 3, {"levels": 2}),
        ([(13, 13)], (6, 8), 4, {"levels": 2, "window": 7}),
        ([(11, 9)], (7, 7), 5, {"levels": 2, "window": 3}),
        ([(17, 18)], (7, 9), 6, {"levels": 3}),
        ([(8, 8)], (1, 3), 7, {"levels": 1}),
        ([(8, 8)], (9, 9), 8, {"levels": 1, "search": "tsvq"}),
        ([(10, 13), (12, 9)], (11, 7), 2**63 - 1, {"levels": 2, "search": "tsvq", "backtrack": 1}),
        ([(11, 11), (9, 14), (10, 10)], (9, 9), 3, {"levels": 2, "search": "tsvq", "codebook": 0.1}),
        ([(17, 18)], (7, 9), 6, {"levels": 3, "search": "tsvq", "codebook": 0.5, "backtrack": 7}),
        ([(13, 13)], (6, 8), 4, {"levels": 2, "window": 7, "search": "tsvq", "codebook": 0, "backtrack": 2}),
    ],
)
def test_wei_levoy(sides, size, seed, settings):
    check("wei-levoy", sides, size, seed, **settings)


@pytest.mark.parametrize(
    ("sides", "size", "seed", "settings"),
    [
        ([(8, 8)], (12, 12), 0, {"levels": 1}),
        ([(9, 9)], (10, 12), 1, {"levels": 2}),
        ([(10, 13), (12, 9)], (11, 11), 2**63 - 1, {"levels": 2, "block": 3}),
        ([(11, 11), (9, 14), (10, 10)], (12, 9), 3, {"levels": 2, "candidates": 3, "reuse": 40}),
        ([(14, 13)], (7, 8), 4, {"levels": 2, "window": 7, "candidates": 0, "novelty": 0}),
        ([(8, 9)], (9, 8), 5, {"levels": 2, "window": 3, "first_passes": 1, "last_passes": 4}),
        ([(17, 18)], (13, 9), 6, {"levels": 3, "reuse": 0, "novelty": 20}),
        ([(25, 24)], (9, 10), 9, {"levels": 2, "window": 11, "first_passes": 2}),
        ([(8, 8)], (2, 3), 7, {"levels": 1}),
        ([(8, 8), (9, 9)], (8, 11), 8, {"levels": 1, "block": 20, "first_passes": 1}),
    ],
)
def test_coherent(sides, size, seed, settings):
    check("coherent", sides, size, seed, **settings)


@pytest.mark.parametrize("size", [(16, 17), (40, 40)])
def test_full_backtracking_equals_exhaustive_search(size):
    patches = random_patches([(12, 15), (14, 12)], 3)
    exhaustive = synthesize(patches, size, "wei-levoy", 5)
    tree = synthesize(patches, size, "wei-levoy", 5, search="tsvq", backtrack=1000)
    np.testing.assert_array_equal(tree.source, exhaustive.source)
    assert (synthesize(patches, size, "wei-levoy", 5, search="tsvq", backtrack=1).source != exhaustive.source).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_tuned_kernels_equal_naive_ones(seed):
    # Photographs have many near windows, which exercises every kind of early rejection.
    image = data.astronaut()[::2, ::2]
    patches = [image[20:50, 90:118], image[150:174, 40:75]]
    for window, epsilon in ((7, 0.1), (5, 0.0), (9, 1.0), (3, 10.0)):
        texture = synthesize(patches, (20, 23), "efros-leung", seed, window=window, epsilon=epsilon)
        np.testing.assert_array_equal(texture.source, naive_efros_leung(patches, (20, 23), seed, window, epsilon))
    texture = synthesize(patches, (20, 23), "wei-levoy", seed, window=7, levels=1)
    np.testing.assert_array_equal(texture.source, naive_wei_levoy(patches, (20, 23), seed, window=7))


@pytest.mark.parametrize(("method", "settings"), [("efros-leung", {"window": 3}), ("wei-levoy", {"levels": 1})])
def test_ties_in_exemplars_larger_than_run(method, settings):
    # Distances are computed in runs of 512 positions; every window of the first patch occurs again in a later run.
    patch = random_patches([(24, 25)], 0)[0]
    check_patches(method, [patch, patch.copy()], (5, 6), 1, **settings)
