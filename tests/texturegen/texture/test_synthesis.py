"""All methods on photographs and extreme cases, and rejected arguments."""

import subprocess
import sys

import numpy as np
import pytest
from skimage import data

from tests.texturegen.texture.laws import check_law
from texturegen.errors import UserError
from texturegen.texture import METHODS, resolve_settings, synthesize

every_method = pytest.mark.parametrize("method", METHODS)
# A large window or block of each method, for patches of 20 pixels.
LARGE = {
    "coherent": {"window": 15},
    "efros-leung": {"window": 19},
    "quilting": {"block": 18},
    "wei-levoy": {"window": 19},
}


def photo_patches(*sides):
    image = data.astronaut()[::3, ::3]
    return [image[90 + 5 * n : 90 + 5 * n + side, 50 : 50 + side] for n, side in enumerate(sides)]


@every_method
@pytest.mark.parametrize(("sides", "size"), [((16, 16), (32, 32)), ((48, 40), (64, 80)), ((31, 64, 17), (50, 33))])
def test_pixels_match_source_map(method, sides, size):
    patches = photo_patches(*sides)
    texture = synthesize(patches, size, method, seed=3)
    check_law(texture, patches, size)
    # The texture must not collapse to a flat colour.
    assert texture.image.std() > 0.5 * np.concatenate([patch.ravel() for patch in patches]).std()


@pytest.mark.parametrize(("side", "size"), [(48, (96, 96)), (96, (224, 224))])
def test_default_method_at_data_set_sizes(side, size):
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
    texture = synthesize([patch], (12, 12), method, **LARGE.get(method, {}))
    check_law(texture, [patch], (12, 12))


@every_method
def test_seeds_give_different_textures(method):
    patches = photo_patches(24, 24)
    assert len({synthesize(patches, (32, 32), method, seed).source.tobytes() for seed in range(6)}) == 6


def good_patch():
    return np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ([], "patches is empty"),
        (good_patch(), r"pass \[patch\]"),
        ([good_patch().astype(np.float32)], "patch 0 is float32, not uint8"),
        ([good_patch(), good_patch()[..., 0]], "patch 1 is grey but patch 0 is RGB; convert all to one kind"),
        ([good_patch()[..., :1], good_patch()[..., 0], good_patch()], "patch 2 is RGB but patch 0 is grey"),
        (good_patch()[..., 0], r"one array of shape \(16, 16\).*pass \[patch\]"),
        (iter([good_patch()]), "patches is a list_iterator, not a list"),
        ([good_patch()[0, :, 0]], r"patch 0 has shape \(16,\)"),
        ([np.zeros((16, 16, 4), np.uint8)], r"patch 0 has shape \(16, 16, 4\)"),
        ([np.zeros((0, 16, 3), np.uint8)], "no pixels"),
        ([[[[1, 2, 3]]]], "patch 0 is a list"),
    ],
)
def test_invalid_patches_are_refused(patches, message):
    with pytest.raises(UserError, match=message):
        synthesize(patches, (8, 8))


@pytest.mark.parametrize("method", ["coherent", "efros-leung", "wei-levoy"])
def test_patch_smaller_than_window(method):
    with pytest.raises(UserError, match="patch 1 is 16x4 pixels, too small for windows of"):
        synthesize([good_patch(), good_patch()[:, :4]], (8, 8), method)


@pytest.mark.parametrize("method", ["coherent", "wei-levoy"])
def test_patch_too_small_for_levels(method):
    with pytest.raises(UserError, match="at 4 levels; use patches with sides of 33 or more"):
        synthesize([good_patch()], (8, 8), method, levels=4)


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8.0, 8), 8, (8, 8, 3), (True, 8), (2**20, 2**20)])
def test_invalid_size_is_refused(size):
    with pytest.raises(UserError, match="size"):
        synthesize([good_patch()], size)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, None])
def test_invalid_seed_is_refused(seed):
    with pytest.raises(UserError, match="seed"):
        synthesize([good_patch()], (8, 8), seed=seed)


def test_unknown_method():
    with pytest.raises(UserError, match=r"unknown method 'coherant'.*did you mean 'coherent'.*efros-leung"):
        synthesize([good_patch()], (8, 8), method="coherant")


def test_unknown_setting():
    with pytest.raises(UserError, match=r"no setting 'windows'.*did you mean 'window'.*block"):
        synthesize([good_patch()], (8, 8), windows=5)


@pytest.mark.parametrize(
    ("method", "given_settings", "message"),
    [
        ("coherent", {"window": 4}, "an odd integer from 3 to 15, not 4"),
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
    assert defaults
    assert resolve_settings(method, defaults) == defaults


def test_numpy_scalars_become_python_numbers():
    window = resolve_settings("coherent", {"window": np.int64(9)})["window"]
    assert (window, type(window)) == (9, int)


def test_import_loads_no_compiler():
    code = "import sys, texturegen.texture; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_coherent_crops_patches_much_larger_than_output():
    generator = np.random.default_rng(0)
    patches = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in ((700, 40, 3), (64, 900, 3))]
    places = []
    for seed in range(4):
        texture = synthesize(patches, (20, 70), seed=seed)
        for number, (patch, axis, most) in enumerate(zip(patches, (1, 2), (128, 140), strict=True)):
            here = texture.source[texture.source[..., 0] == number]
            np.testing.assert_array_equal(
                texture.image[texture.source[..., 0] == number], patch[here[:, 1], here[:, 2]]
            )
            assert np.ptp(here[:, axis]) < most
            places.append(here[:, axis].min())
    assert len({*places}) > 4  # not the same crop each time
    deep = synthesize(
        [patches[0].repeat(8, axis=1)], (20, 20), window=3, levels=8
    )  # one window is 257 pixels at the coarsest level
    assert deep.image.shape == (20, 20, 3)


@pytest.mark.parametrize(
    ("side", "size", "levels"), [(9, 32, 1), (16, 32, 2), (28, 96, 3), (96, 224, 4), (200, 16, 1), (200, 40, 2)]
)
def test_automatic_levels_keep_minimum_sides(side, size, levels):
    patch = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    automatic = synthesize([patch], (size, size))
    np.testing.assert_array_equal(automatic.source, synthesize([patch], (size, size), levels=levels).source)
