"""Laws that hold for every method, and what is refused."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from texturegen.errors import UserError
from texturegen.texture import METHODS, resolve_settings, synthesize

every_method = pytest.mark.parametrize("method", METHODS)


def photo_patches(*sides):
    image = data.astronaut()[::3, ::3]
    return [image[90 + 5 * n : 90 + 5 * n + side, 50 : 50 + side] for n, side in enumerate(sides)]


def check_law(texture, patches, size):
    assert texture.image.dtype == np.uint8
    assert texture.source.dtype == np.int32
    assert texture.image.shape == texture.source.shape == (*size, 3)
    for number, patch in enumerate(patches):
        here = texture.source[..., 0] == number
        _, y, x = texture.source[here].T
        if here.any():
            assert min(y.min(), x.min()) >= 0
        np.testing.assert_array_equal(texture.image[here], patch[y, x])
    assert texture.source[..., 0].min() >= 0
    assert texture.source[..., 0].max() < len(patches)


@every_method
@pytest.mark.parametrize(("sides", "size"), [((16, 16), (32, 32)), ((48, 40), (64, 80)), ((31, 64, 17), (50, 33))])
def test_pixels_come_from_where_the_source_says(method, sides, size):
    patches = photo_patches(*sides)
    texture = synthesize(patches, size, method, seed=3)
    check_law(texture, patches, size)
    # No collapse to a flat colour.
    assert texture.image.std() > 0.5 * np.concatenate([patch.ravel() for patch in patches]).std()


@pytest.mark.parametrize(("side", "size"), [(48, (96, 96)), (96, (224, 224))])
def test_default_method_at_the_sizes_of_the_data_sets(side, size):
    patches = photo_patches(side, side)
    texture = synthesize(patches, size)
    check_law(texture, patches, size)
    assert set(np.unique(texture.source[..., 0])) == {0, 1}


@every_method
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (1, 40), (400, 1), (2, 300)])
def test_tiny_and_elongated_sizes(method, size):
    patches = photo_patches(12, 16)
    check_law(synthesize(patches, size, method), patches, size)


@every_method
def test_constant_patches(method):
    patches = [np.full((16, 16, 3), 90, np.uint8), np.full((12, 20, 3), 90, np.uint8)]
    texture = synthesize(patches, (20, 20), method)
    check_law(texture, patches, (20, 20))
    assert (texture.image == 90).all()


@every_method
def test_extreme_colours_do_not_overflow(method):
    patch = np.zeros((20, 20, 3), np.uint8)
    patch[:, 10:] = 255
    window = 15 if method == "coherent" else 19
    texture = synthesize([patch], (12, 12), method, window=window)
    check_law(texture, [patch], (12, 12))


@every_method
def test_memory_layout_does_not_matter(method):
    patch = np.ascontiguousarray(photo_patches(24)[0])
    expected = synthesize([patch], (20, 20), method, seed=1)
    frozen = patch.copy()
    frozen.flags.writeable = False
    for same in (np.asfortranarray(patch), patch[::-1, ::-1].copy()[::-1, ::-1], frozen):
        texture = synthesize([same], (20, 20), method, seed=1)
        np.testing.assert_array_equal(texture.source, expected.source)
    np.testing.assert_array_equal(patch, frozen)


@every_method
def test_same_seed_same_texture_also_in_threads(method):
    patches = photo_patches(24, 24)
    expected = [synthesize(patches, (32, 32), method, seed).source for seed in range(6)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: synthesize(patches, (32, 32), method, seed).source, range(6)))
    np.testing.assert_array_equal(expected, found)
    assert len({source.tobytes() for source in expected}) == 6


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(list(METHODS)),
    sides=st.lists(st.tuples(st.integers(7, 30), st.integers(7, 30)), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**63 - 1),
)
def test_law_for_any_sizes(method, sides, size, seed):
    generator = np.random.default_rng(seed)
    patches = [generator.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]
    check_law(synthesize(patches, size, method, seed), patches, size)


def good_patch():
    return np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ([], "patches is empty"),
        (good_patch(), r"pass \[patch\]"),
        ([good_patch().astype(np.float32)], "patch 0 is float32, not uint8"),
        ([good_patch(), good_patch()[..., 0]], r"patch 1 has shape \(16, 16\).*RGB"),
        ([np.zeros((16, 16, 4), np.uint8)], r"patch 0 has shape \(16, 16, 4\)"),
        ([np.zeros((0, 16, 3), np.uint8)], "no pixels"),
        ([[[[1, 2, 3]]]], "patch 0 is a list"),
    ],
)
def test_bad_patches(patches, message):
    with pytest.raises(UserError, match=message):
        synthesize(patches, (8, 8))


@every_method
def test_patch_smaller_than_a_window(method):
    with pytest.raises(UserError, match="patch 1 is 16x4 pixels, too small for windows of"):
        synthesize([good_patch(), good_patch()[:, :4]], (8, 8), method)


@pytest.mark.parametrize("method", ["coherent", "wei-levoy"])
def test_patch_too_small_for_the_levels(method):
    with pytest.raises(UserError, match="at 4 levels: use patches with sides of 33 or more"):
        synthesize([good_patch()], (8, 8), method, levels=4)


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8.0, 8), 8, (8, 8, 3), (True, 8), (2**20, 2**20)])
def test_bad_size(size):
    with pytest.raises(UserError, match="size"):
        synthesize([good_patch()], size)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, None])
def test_bad_seed(seed):
    with pytest.raises(UserError, match="seed"):
        synthesize([good_patch()], (8, 8), seed=seed)


def test_unknown_method():
    with pytest.raises(UserError, match=r"no method 'coherant'.*did you mean 'coherent'.*efros-leung"):
        synthesize([good_patch()], (8, 8), method="coherant")


def test_unknown_setting():
    with pytest.raises(UserError, match=r"no setting 'windows'.*did you mean 'window'.*block"):
        synthesize([good_patch()], (8, 8), windows=5)


@pytest.mark.parametrize(
    ("method", "given_settings", "message"),
    [
        ("coherent", {"window": 4}, "an odd whole number from 3 to 15, not 4"),
        ("coherent", {"window": "5"}, "'window'"),
        ("coherent", {"window": True}, "'window'"),
        ("coherent", {"levels": 0}, "or None"),
        ("coherent", {"block": None}, "'block'"),
        ("efros-leung", {"epsilon": -0.1}, "a number from 0 to 10"),
        ("efros-leung", {"epsilon": float("nan")}, "'epsilon'"),
        ("efros-leung", {"window": 33}, "'window'"),
        ("wei-levoy", {"levels": 2.0}, "'levels'"),
    ],
)
def test_settings_out_of_range(method, given_settings, message):
    with pytest.raises(UserError, match=message):
        resolve_settings(method, given_settings)


@every_method
def test_defaults_resolve_to_themselves(method):
    defaults = resolve_settings(method)
    assert resolve_settings(method, defaults) == defaults
    assert "window" in defaults
    assert resolve_settings(method, {"window": np.int64(9)}) == {**defaults, "window": 9}


def test_import_loads_no_compiler():
    code = "import sys, texturegen.texture; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
