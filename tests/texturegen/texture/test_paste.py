"""Pasted textures: the mask's place and size, the blend, and the same pixels everywhere."""

import hashlib

import numpy as np
import pytest

from texturegen.texture import PASTE_VERSION
from texturegen.texture.paste import paste_texture


def pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.PCG64(0).random_raw(height * width).astype("<u8").view(np.uint8)
    both = rng[: height * width * 6].reshape(2, height, width, 3)
    return both[0].copy(), both[1].copy()


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (96, 140)])
def test_only_the_mask_changes_and_by_its_share(size: tuple[int, int]) -> None:
    image, texture = pair(*size)
    shares = []
    for seed in range(60):
        pasted, mask = paste_texture(image, texture, seed)
        share = mask[..., None] / 255
        np.testing.assert_allclose(pasted, share * texture + (1 - share) * image, atol=0.5001)
        np.testing.assert_array_equal(pasted[mask == 0], image[mask == 0])
        shares.append(float((mask >= 128).mean()))
        assert mask.max() >= 128
        assert ((mask > 0) & (mask < 255)).any()  # a soft edge
    short, area = min(size), size[0] * size[1]
    # A third of a square of 3 to 7 tenths of the short side; a quarter of that in a corner of the image.
    assert 0.2 * 0.09 * short**2 / area / 4 < min(shares) < 0.05
    assert 0.1 * short**2 / area < max(shares) < 0.45 * 0.49 * short**2 / area


def test_places_reach_the_whole_image() -> None:
    image, texture = pair(32, 48)
    touched = sum(paste_texture(image, texture, seed)[1].astype(int) >= 128 for seed in range(400))
    assert (touched > 0).all()
    assert paste_texture(image, texture, 1)[1].tobytes() != paste_texture(image, texture, 2)[1].tobytes()


def test_other_pixels_have_another_version() -> None:
    image, texture = pair(40, 48)
    made = [part.tobytes() for seed in (0, 7, 2**62) for part in paste_texture(image, texture, seed)]
    digest = hashlib.sha256(b"".join(made)).hexdigest()[:16]
    assert (PASTE_VERSION, digest) == (1, "bb75942ec97f77e0"), "raise PASTE_VERSION, and enter both here"
