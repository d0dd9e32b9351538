"""Paste a texture into an image at a random place with a soft edge, for training that finds such places.

The pairs of image and mask are those that segmenters of anomalies are trained on: Zavrtanik et al., "DRAEM", ICCV 2021,
section 3.3, where textures of other photographs are pasted through masks of thresholded Perlin noise.
"""

import cv2
import numpy as np

_SIDES = 3, 7  # tenths of the image's short side: smallest and largest side of the place
_CELLS = 5  # of the noise, per side
_FILLED = 0.35  # fraction of the place


def paste_texture(image: np.ndarray, texture: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with a texture pasted into it, and the mask.

    The place is a square of three to seven tenths of the image's short side around any pixel, of which a blob fills
    about a third: noise that grows from the border of the square to its centre, thresholded. The edge is blurred.

    Parameters
    ----------
    image, texture : ndarray uint8 (H, W, 3)
        RGB, of one size, at least 16 pixels.
    seed : int
        Seed of place and form, 0 or more.

    Returns
    -------
    pasted : ndarray uint8 (H, W, 3)
        (mask * texture + (255 - mask) * image) / 255, rounded.
    mask : ndarray uint8 (H, W)
        255 in the blob, 0 outside, between on its edge; from 128 on, the texture prevails.

    Examples
    --------
    >>> from texturegen import open_shards
    >>> sample = open_shards("shards")[0]
    >>> pasted, mask = paste_texture(sample.image, sample.textures[0], seed=0)
    >>> pasted.shape, mask.shape, int(mask.max())
    ((32, 32, 3), (32, 32), 255)
    """
    height, width = image.shape[:2]
    mask = _draw_mask(height, width, seed)
    share = mask[..., None].astype(np.uint16)
    return ((share * texture + (255 - share) * image + 127) // 255).astype(np.uint8), mask


def _draw_mask(height: int, width: int, seed: int) -> np.ndarray:
    """Return the mask, uint8 (H, W). All steps are in integers, so that every machine draws the same."""
    # A sequence of its own: the patches were drawn from the seed itself.
    draw = np.random.PCG64(np.random.SeedSequence((seed, 1))).random_raw
    short = min(height, width)
    low, high = (max(short * tenths // 10, 4) for tenths in _SIDES)
    side = low + int(draw()) % (high - low + 1)
    top, left = int(draw()) % height - side // 2, int(draw()) % width - side // 2
    cells = (draw(_CELLS**2) & np.uint64(255)).astype(np.uint8).reshape(_CELLS, _CELLS)
    noise = cv2.resize(cells, (side, side), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.int64)
    # Squared distances from the centre in quarters of square pixels: 0 to side**2 inside of the circle.
    along = (2 * np.arange(side, dtype=np.int64) + 1 - side) ** 2
    height_of_blob = noise + 510 - 510 * (along[:, None] + along) // side**2
    threshold = np.sort(height_of_blob, axis=None)[round((1 - _FILLED) * side**2)]
    mask = np.zeros((height + 2 * side, width + 2 * side), np.uint8)  # the place may reach over the border
    mask[top + side : top + 2 * side, left + side : left + 2 * side] = np.where(height_of_blob >= threshold, 255, 0)
    inside = np.ascontiguousarray(mask[side : side + height, side : side + width])
    return cv2.GaussianBlur(inside, (0, 0), max(short / 96, 0.5))
