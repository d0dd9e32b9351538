"""Which patches of an image a texture is made from (Ge et al., NeurIPS 2021, section 3.1; SACL section 3.2),
and what is accepted as patches, images and sizes.
"""

from collections.abc import Sequence

import numpy as np

from texturegen.errors import UserError

MAX_SIDE = 96  # the patches of a 224 pixel image, in both papers
_MIN_SIDE = 8  # smaller patches hold no texture that a window could find

Box = tuple[int, int, int, int]


def cut_patches(
    image: np.ndarray, seed: int, count: int = 2, side: int | None = None
) -> tuple[list[np.ndarray], list[Box]]:
    """Cut square patches: the first at the image's centre, the others at random places.

    Parameters
    ----------
    image : uint8, RGB (H, W, 3) or grey (H, W) or (H, W, 1).
    seed : 0 <= seed; decides the random places.
    count : how many patches, 1 or more.
    side : of the patches, in pixels; by default half the image's shorter side, at most 96.

    Returns
    -------
    The patches, views into the image, and their boxes (y, x, height, width).

    Raises
    ------
    UserError : an image that is not uint8 RGB or grey or is too small, a count or side out of range.
    """
    check_image(image, "the image")
    if count < 1:
        raise UserError(f"count is {count}: at least one patch is needed")
    height, width = image.shape[:2]
    if side is None:
        side = min(min(height, width) // 2, MAX_SIDE)
        if side < _MIN_SIDE:
            raise UserError(
                f"the image is {height}x{width} pixels: too small for patches of half its side "
                f"({_MIN_SIDE} or more); leave it out, enlarge it, or set side"
            )
    elif not 1 <= side <= min(height, width):
        raise UserError(f"side is {side}: it must be from 1 to the image's shorter side, {min(height, width)}")
    places = [((height - side) // 2, (width - side) // 2)]
    generator = np.random.default_rng(seed)
    for _ in range(count - 1):
        places.append((int(generator.integers(height - side + 1)), int(generator.integers(width - side + 1))))
    patches = [image[y : y + side, x : x + side] for y, x in places]
    return patches, [(y, x, side, side) for y, x in places]


def read_patches(patches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Check patches, all RGB or all grey, and return them as RGB uint8 (h, w, 3), grey as three equal channels.

    Those that are so already are not copied, and nothing writes to them. The kernels are compiled once, for contiguous
    and writable arrays of three channels. Raises UserError for no patches, for grey beside RGB, and for what
    `check_image` refuses.
    """
    if isinstance(patches, np.ndarray) and patches.ndim != 4:
        # Of three dimensions it may be many grey patches, but then also a single one, whose rows are no patches.
        raise UserError(
            f"patches is one array of shape {patches.shape}, not a list of arrays; for a single patch, pass [patch]"
        )
    if not isinstance(patches, (Sequence, np.ndarray)):
        raise UserError(f"patches is a {type(patches).__name__}, not a list of arrays")
    if len(patches) == 0:
        raise UserError("patches is empty: at least one patch is needed")
    for number, patch in enumerate(patches):
        check_image(patch, f"patch {number}")
        if is_grey(patch) != is_grey(patches[0]):
            kinds = ("grey", "RGB") if is_grey(patch) else ("RGB", "grey")
            raise UserError(f"patch {number} is {kinds[0]}, patch 0 {kinds[1]}: convert them to one kind first")
    return [_as_rgb(patch) for patch in patches]


def check_image(image: np.ndarray, name: str) -> None:
    """Refuse what is not a uint8 image, RGB (h, w, 3) or grey (h, w) or (h, w, 1), of one pixel or more.

    Raises UserError; `name` says in the message which image it is.
    """
    if not isinstance(image, np.ndarray):
        raise UserError(f"{name} is a {type(image).__name__}, not a NumPy array")
    if image.ndim < 2 or image.shape[2:] not in ((), (1,), (3,)):
        raise UserError(
            f"{name} has shape {image.shape}, not (height, width, 3) for RGB or (height, width) for grey: "
            "convert it first, a transparent image by dropping its alpha channel"
        )
    if image.dtype != np.uint8:
        raise UserError(f"{name} is {image.dtype}, not uint8: scale it to 0 .. 255 and convert it")
    if image.size == 0:
        raise UserError(f"{name} has shape {image.shape}: it has no pixels")


def is_grey(image: np.ndarray) -> bool:
    """Say whether an image that `check_image` accepts has one channel."""
    return image.shape[2:] != (3,)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    if type(image) is np.ndarray and image.shape[2:] == (3,) and image.flags.carray:  # contiguous and writable
        return image
    copy = np.empty((*image.shape[:2], 3), dtype=np.uint8)
    copy[:] = image if image.ndim == 3 else image[..., None]
    return copy


def read_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) as plain ints; UserError unless they are 1 or more and give fewer than 2**31 pixels."""
    try:
        height, width = size
    except (TypeError, ValueError):
        raise UserError(f"size must be (height, width), not {size!r}") from None
    for side in (height, width):
        if not isinstance(side, (int, np.integer)) or isinstance(side, bool) or side < 1:
            raise UserError(f"size must be two whole numbers of 1 or more, not {size!r}")
    if height * width >= 2**31:
        raise UserError(f"size {size!r} has 2**31 pixels or more")
    return int(height), int(width)
