"""`shapes`: silhouettes filled with photographs of textures, generated on the fly without a download.

After the stylised images of Geirhos et al. (ICLR 2019), every image has a shape, which is its label, and a texture,
which is a crop of a photograph from scikit-image's wheel. In `train` and `test`, texture k fills shape k in 80 % of the
images; in `conflict` it never does. An encoder that reads texture instead of shape is therefore good on `test` and
fails on `conflict`. All splits use the same photographs, but other crops, positions, sizes and rotations.

Image `index` is a function of (VERSION, split, index, size, background). Its random numbers are raw words of a
counter-based generator, because NumPy guarantees that stream but not the streams of its distributions.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from texturegen.errors import UserError, nearest
from texturegen.sources.base import Item, Source
from texturegen.sources.silhouettes import SILHOUETTES, draw_mask

VERSION = 1  # increase it when any pixel changes
SPLITS = {"train": 4000, "test": 1000, "conflict": 1000}
BACKGROUNDS = ("plain", "photo")
MIN_SIZE = 16

# Texture k belongs to shape k. The slices of rows and columns select the part that shows only the texture.
TEXTURES = {
    "brick": ("brick.png", slice(None), slice(None)),
    "fur": ("chelsea.png", slice(20, None), slice(20, 300)),
    "grass": ("grass.png", slice(None), slice(None)),
    "retina": ("retina.jpg", slice(250, 1160), slice(250, 1160)),
    "gravel": ("gravel.png", slice(None), slice(None)),
    "tissue": ("ihc.png", slice(None), slice(None)),
    "print": ("page.png", slice(None), slice(10, 350)),
    "stars": ("hubble_deep_field.jpg", slice(None), slice(None)),
    "coins": ("coins.png", slice(None), slice(None)),
    "coffee": ("coffee.png", slice(None), slice(None)),
}
# No texture is among these, so the background says nothing about the class.
BACKDROPS = ("astronaut.png", "camera.png", "motorcycle_left.png", "rocket.jpg")
CROP = 96  # side in pixels: a smaller crop shows no pattern, a larger one no detail in a small image


class Shapes(Source):
    """Ten silhouettes at random positions and sizes, within 30 degrees of upright.

    Parameters
    ----------
    split : "train" (4000 images), "test" (1000) or "conflict" (1000).
    size : side of the images in pixels, at least 16; None is 32.
    background : "plain", a random colour with noise, or "photo", a crop of a photograph, which is much harder.
    """

    name = "shapes"
    split: str
    size: int

    def __init__(self, split: str, size: int | None, background: str = "plain") -> None:
        if background not in BACKGROUNDS:
            raise UserError(
                f"shapes has no background '{background}'{nearest(str(background), BACKGROUNDS)}; "
                f"backgrounds: {', '.join(BACKGROUNDS)}"
            )
        if size is not None and size < MIN_SIZE:
            raise UserError(f"shapes of {size} pixels cannot be told apart; size must be at least {MIN_SIZE}")
        self.split, self.size, self.background = split, size or 32, background
        self.classes = list(SILHOUETTES)

    def __len__(self) -> int:
        return SPLITS[self.split]

    def key(self, index: int) -> str:
        return f"shapes-{self.split}-{index:08d}"

    def layers(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what image `index` is composed of.

        Returns
        -------
        fill : uint8 (size, size, 3), the texture of the shape, also outside of it.
        mask : uint8 (size, size), 255 where the shape is, 0 where it is not, between on its edge.
        behind : uint8 (size, size, 3), the whole background.
        """
        return self._draw(index)[0]

    def _read(self, index: int) -> Item:
        layers, texture = self._draw(index)
        label = index % len(SILHOUETTES)
        shape, material = self.classes[label], list(TEXTURES)[texture]
        meta = {"shape": shape, "texture": material, "texture_label": texture, "split": self.split}
        return Item(self.key(index), compose(*layers), label, meta=meta)

    def _draw(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
        """Return the layers of an image and its texture."""
        draws = Draws(VERSION, list(SPLITS).index(self.split), index)
        label = index % len(SILHOUETTES)  # balanced in every prefix of the split
        texture = draw_texture(draws, label, self.split)
        mask = draw_mask(SILHOUETTES[self.classes[label]], self.size, draws)
        fill = cut_crop(load_texture(list(TEXTURES)[texture]), self.size, draws)
        if self.background == "photo":
            behind = cut_crop(load_photo(BACKDROPS[draws.below(len(BACKDROPS))]), self.size, draws)
        else:
            behind = make_plain(self.size, draws)
        return (fill, mask, behind), texture

    def _identity(self) -> Any:
        return [self.name, VERSION, self.split, len(self), self.size, self.background]


def compose(front: np.ndarray, mask: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Return an image uint8 (H, W, 3) in front of another, where its mask uint8 (H, W) is 255."""
    share = mask[..., None].astype(np.uint16)
    return ((share * front + (255 - share) * behind + 127) // 255).astype(np.uint8)


class Draws:
    """The random numbers of one image, in the order of the calls."""

    def __init__(self, *entropy: int) -> None:
        self._raw = np.random.Philox(np.random.SeedSequence(entropy))

    def below(self, limit: int) -> int:
        """Return an integer in 0 .. limit - 1."""
        return int(self._raw.random_raw()) % limit

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.below(2**32) / 2**32

    def bytes(self, count: int) -> np.ndarray:
        """Return uint8 (count,)."""
        return self._raw.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]


def draw_texture(draws: Draws, label: int, split: str) -> int:
    """Return the texture for a shape of class `label`: its own for 8 draws in 10, never in `conflict`, else another."""
    if split != "conflict" and draws.below(10) < 8:
        return label
    return (label + 1 + draws.below(len(TEXTURES) - 1)) % len(TEXTURES)


def cut_crop(photo: np.ndarray, size: int, draws: Draws) -> np.ndarray:
    """Return a random square of a photograph, scaled to `size`; a larger image shows more of it, at full resolution."""
    height, width = photo.shape[:2]
    side = min(max(CROP, size), height, width)
    top, left = draws.below(height - side + 1), draws.below(width - side + 1)
    crop = photo[top : top + side, left : left + side]
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def make_plain(size: int, draws: Draws) -> np.ndarray:
    """Return a random colour with noise of up to 24 grey levels per channel."""
    colour = draws.bytes(3).astype(np.int16)
    noise = draws.bytes(size * size * 3).reshape(size, size, 3) % 49 - np.int16(24)
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


@cache
def load_texture(material: str) -> np.ndarray:
    """Return the photograph of a texture, uint8 (H, W, 3) RGB."""
    file, rows, columns = TEXTURES[material]
    photo = load_photo(file)[rows, columns]
    if material == "retina":  # a crop at full scale is a flat red
        photo = cv2.resize(photo, None, fx=1 / 3, fy=1 / 3, interpolation=cv2.INTER_AREA)
    return photo


@cache
def load_photo(file: str) -> np.ndarray:
    """Return a photograph of scikit-image's wheel, uint8 (H, W, 3) RGB.

    Read from the wheel itself, because `skimage.data` may download files.
    """
    package = find_spec("skimage")
    path = Path(package.origin).parent / "data" / file if package and package.origin else None
    if path is None or not path.is_file():
        raise UserError(f"shapes needs {file} of scikit-image's wheel, which is not installed; reinstall scikit-image")
    return np.array(Image.open(path).convert("RGB"))
