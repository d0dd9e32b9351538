import numpy as np
import pytest

from texturegen.errors import UserError
from texturegen.texture import METHODS, cut_patches, synthesize
from texturegen.texture.patches import is_grey, read_patches


def numbered(height, width):
    return np.arange(height * width * 3).reshape(height, width, 3).astype(np.uint8)


@pytest.mark.parametrize(("size", "side"), [((32, 32), 9), ((96, 96), 28), ((224, 224), 67), ((300, 21), 8)])
def test_first_patch_is_central_and_all_are_inside(size, side):
    image = numbered(*size)
    patches, boxes = cut_patches(image, seed=7, count=4)
    assert boxes[0] == ((size[0] - side) // 2, (size[1] - side) // 2, side, side)
    assert len(patches) == len(boxes) == 4
    for patch, (y, x, high, wide) in zip(patches, boxes, strict=True):
        assert high == wide == side
        assert 0 <= y <= size[0] - side
        assert 0 <= x <= size[1] - side
        np.testing.assert_array_equal(patch, image[y : y + high, x : x + wide])
    assert cut_patches(image, seed=7, count=4)[1] == boxes
    assert cut_patches(image, seed=8, count=4)[1] != boxes


def test_random_positions_reach_every_corner():
    image = numbered(18, 18)
    places = {box[:2] for seed in range(200) for box in cut_patches(image, seed, side=16)[1][1:]}
    assert places == {(y, x) for y in range(3) for x in range(3)}


@pytest.mark.parametrize(("short", "side"), [(16, 8), (26, 8), (30, 9), (32, 9), (96, 28), (224, 67), (400, 96)])
def test_default_side_is_three_tenths_of_the_short_side_within_limits(short, side):
    _, boxes = cut_patches(numbered(short + 9, short), seed=0)
    assert [box[2:] for box in boxes] == [(side, side)] * 2


@pytest.mark.parametrize("size", [(32, 32), (96, 120), (17, 300)])
def test_patches_near_corners_touch_the_border_and_reach_every_corner(size):
    image, found = numbered(*size), set()
    for seed in range(300):
        patches, boxes = cut_patches(image, seed, count=6, place="corners")
        corners = []
        for patch, (y, x, side, _) in zip(patches, boxes, strict=True):
            np.testing.assert_array_equal(patch, image[y : y + side, x : x + side])
            bottom, right = size[0] - side, size[1] - side
            down, along = min(y, bottom - y), min(x, right - x)
            assert min(down, along) == 0
            assert down <= bottom // 8
            assert along <= right // 8
            corners.append((y > bottom / 2, x > right / 2))
        assert len(set(corners[:4])) == 4  # before one comes again
        found |= {box[:2] for box in boxes}
    assert len(found) == 4 * (bottom // 8 + right // 8 + 1)
    assert cut_patches(image, 7, 4, place="corners")[1] != cut_patches(image, 8, 4, place="corners")[1]
    assert cut_patches(image, 7, 4, place="corners")[1] == cut_patches(image, 7, 4, place="corners")[1]


def test_patch_may_cover_the_image():
    patches, boxes = cut_patches(numbered(9, 12), seed=0, count=1, side=9)
    assert boxes == [(0, 1, 9, 9)]
    assert patches[0].shape == (9, 9, 3)


def test_grey_images_give_grey_patches_at_same_positions():
    image = numbered(20, 30)
    patches, boxes = cut_patches(image, seed=3)
    for grey in (image[..., 0], image[..., :1]):
        found, places = cut_patches(grey, seed=3)
        assert places == boxes
        for patch, rgb in zip(found, patches, strict=True):
            np.testing.assert_array_equal(patch, rgb[..., 0].reshape(patch.shape))
            assert patch.shape == (8, 8, *grey.shape[2:])


@pytest.mark.parametrize(
    ("shape", "grey"),
    [((4, 3), True), ((4, 5, 1), True), ((4, 5, 3), False), ((1, 1, 3), False)],
)
def test_patches_become_contiguous_rgb(shape, grey):
    patch = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    frozen = patch.copy()
    frozen.flags.writeable = False
    for given in (patch, frozen, np.asfortranarray(patch), patch.view(np.memmap)):
        (read,) = read_patches([given])
        assert is_grey(given) == grey
        assert type(read) is np.ndarray
        assert read.shape == (*shape[:2], 3)
        assert read.flags.carray
        for channel in range(3):
            np.testing.assert_array_equal(read[..., channel], patch.reshape(shape[:2]) if grey else patch[..., channel])
    (read,) = read_patches([patch])
    assert np.shares_memory(read, patch) == (not grey)


@pytest.mark.parametrize("method", METHODS)
def test_patches_are_not_modified(method):
    generator = np.random.default_rng(0)
    patches = [generator.integers(0, 256, (16, 20, 3), dtype=np.uint8) for _ in range(2)]
    before = [patch.copy() for patch in patches]
    synthesize(patches, (20, 18), method)
    np.testing.assert_array_equal(patches, before)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (numbered(15, 40), {}, "15x40 pixels, too few"),
        (numbered(20, 30), {"side": 21}, "from 1 to the short side of the image, 20, not 21"),
        (numbered(20, 30), {"side": 0}, "side must be from 1 to the short side of the image, 20, not 0"),
        (numbered(20, 30), {"count": 0}, "count must be at least 1, not 0"),
        (numbered(20, 30), {"place": "corner"}, r"unknown place 'corner' \(did you mean 'corners'\?\)"),
        (numbered(20, 30)[..., :2], {}, r"the image has shape \(20, 30, 2\), not \(height, width, 3\) for RGB"),
        (numbered(20, 30)[0, 0], {}, r"shape \(3,\)"),
        (numbered(20, 30).astype(float), {}, "float64, not uint8"),
    ],
)
def test_invalid_arguments_are_refused(image, options, message):
    with pytest.raises(UserError, match=message):
        cut_patches(image, 0, **options)
