"""Cut the patches of an image, and check patches, images and sizes.

Patches are chosen as in Ge et al., NeurIPS 2021, section 3.1, and SACL, section 3.2.
"""

from collections.abc import Sequence

import numpy as np

from texturegen.errors import UserError, nearest
from texturegen.texture import PLACES

COUNT = 2
# A patch of half the image's side often shows enough of an object to name it, also in the texture (docs/synthesis.md).
_SHARE = 3, 10
MAX_SIDE = 96  # both papers cut patches of this side from images of 224 pixels
_MIN_SIDE = 8  # a smaller patch is barely larger than a window
_CORNER = 8  # a patch "near" a corner is at most an eighth of its possible shift away from it

Box = tuple[int, int, int, int]


def cut_patches(
    image: np.ndarray, seed: int, count: int | None = None, side: int | None = None, place: str | None = None
) -> tuple[list[np.ndarray], list[Box]]:
    """Cut square patches from an image.

    Parameters
    ----------
    image : uint8, RGB (H, W, 3) or grey (H, W) or (H, W, 1).
    seed : seed of the random positions, 0 or more.
    count : number of patches, at least 1; None for 2.
    side : side of the patches in pixels; None for three tenths of the image's short side, at least 8 and at most 96.
    place : None cuts the first patch at the centre and the others at random positions. "corners" shows the background:
        each patch touches the border of the image near a corner, and every four patches have four corners, in random
        order.

    Returns
    -------
    The patches, as views into the image, and their boxes (y, x, height, width).

    Raises
    ------
    UserError : the image is not uint8 RGB or grey, or smaller than 16 pixels with `side` None; `count` or `side` is out
        of range; `place` is unknown.

    References
    ----------
    .. [1] S. Ge et al., "Robust contrastive learning using negative samples with diminished semantics", NeurIPS 2021,
           section 3.1.

    Examples
    --------
    >>> from texturegen import cut_patches, open_shards
    >>> image = open_shards("shards")[0].image
    >>> patches, boxes = cut_patches(image, seed=0)
    >>> image.shape, [patch.shape for patch in patches]
    ((32, 32, 3), [(9, 9, 3), (9, 9, 3)])
    >>> boxes[0]
    (11, 11, 9, 9)
    """
    check_image(image, "the image")
    if count is None:
        count = COUNT
    elif count < 1:
        raise UserError(f"count must be at least 1, not {count}")
    height, width = image.shape[:2]
    if side is None:
        short = min(height, width)
        if short < 2 * _MIN_SIDE:
            raise UserError(
                f"the image has {height}x{width} pixels, too few for two patches: its short side must be "
                f"{2 * _MIN_SIDE} or more; leave it out, enlarge it, or set the side of the patches (--patch-size)"
            )
        side = min(max(short * _SHARE[0] // _SHARE[1], _MIN_SIDE), MAX_SIDE)
    elif not 1 <= side <= min(height, width):
        raise UserError(f"side must be from 1 to the short side of the image, {min(height, width)}, not {side}")
    if place is not None and place not in PLACES:
        raise UserError(f"unknown place '{place}'{nearest(str(place), PLACES)}; places: {', '.join(PLACES)}")
    choose = _choose_corners if place == "corners" else _choose_anywhere
    positions = choose(height - side, width - side, count, seed)
    patches = [image[y : y + side, x : x + side] for y, x in positions]
    return patches, [(y, x, side, side) for y, x in positions]


def _choose_anywhere(bottom: int, right: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Return the centre and `count - 1` random positions, each (y, x) from (0, 0) to (bottom, right)."""
    # NumPy keeps the numbers of its bit generators for ever, but not those of `Generator.integers` (NEP 19).
    draw = np.random.PCG64(seed).random_raw
    others = [(int(draw()) % (bottom + 1), int(draw()) % (right + 1)) for _ in range(count - 1)]
    return [(bottom // 2, right // 2), *others]


def _choose_corners(bottom: int, right: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Return `count` positions on the border near corners, each (y, x) from (0, 0) to (bottom, right)."""
    draw = np.random.PCG64(seed).random_raw
    down, along = bottom // _CORNER, right // _CORNER
    corners: list[int] = []
    positions = []
    for _ in range(count):
        corners = corners or [0, 1, 2, 3]
        corner = corners.pop(int(draw()) % len(corners))
        shift = int(draw()) % (down + 1 + along)  # first those along the vertical border, then along the horizontal one
        y, x = (shift, 0) if shift <= down else (0, shift - down)
        positions.append((bottom - y if corner & 2 else y, right - x if corner & 1 else x))
    return positions


def read_patches(patches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Check patches and return them as RGB, because kernels are compiled for RGB alone.

    Parameters
    ----------
    patches : see `synthesize`.

    Returns
    -------
    Contiguous, writable uint8 (h, w, 3) arrays, with three equal channels for grey. A patch that already has this form
    is returned without a copy, and is never written to.

    Raises
    ------
    UserError : there are no patches, or both grey and RGB ones, or `check_image` rejects one.
    """
    if isinstance(patches, np.ndarray) and patches.ndim != 4:
        # An array of three dimensions is ambiguous: grey patches, or the rows of one RGB patch.
        raise UserError(
            f"patches is one array of shape {patches.shape}, not a list of arrays; for a single patch, pass [patch]"
        )
    if not isinstance(patches, (Sequence, np.ndarray)):
        raise UserError(f"patches is a {type(patches).__name__}, not a list of arrays")
    if len(patches) == 0:
        raise UserError("patches is empty; give at least one patch")
    for number, patch in enumerate(patches):
        check_image(patch, f"patch {number}")
        if is_grey(patch) != is_grey(patches[0]):
            kinds = ("grey", "RGB") if is_grey(patch) else ("RGB", "grey")
            raise UserError(f"patch {number} is {kinds[0]} but patch 0 is {kinds[1]}; convert all to one kind")
    return [_as_rgb(patch) for patch in patches]


def check_image(image: np.ndarray, name: str) -> None:
    """Raise UserError unless `image` is a non-empty uint8 array, RGB (h, w, 3) or grey (h, w) or (h, w, 1).

    The message calls the image `name`.
    """
    if not isinstance(image, np.ndarray):
        raise UserError(f"{name} is a {type(image).__name__}, not a NumPy array")
    if image.ndim < 2 or image.shape[2:] not in ((), (1,), (3,)):
        raise UserError(
            f"{name} has shape {image.shape}, not (height, width, 3) for RGB or (height, width) for grey; "
            "convert it, for example by dropping an alpha channel"
        )
    if image.dtype != np.uint8:
        raise UserError(f"{name} is {image.dtype}, not uint8; scale it to 0 .. 255 and convert it")
    if image.size == 0:
        raise UserError(f"{name} has shape {image.shape}, which has no pixels")


def is_grey(image: np.ndarray) -> bool:
    """Return True if an image that `check_image` accepts has one channel."""
    return image.shape[2:] != (3,)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    if type(image) is np.ndarray and image.shape[2:] == (3,) and image.flags.carray:  # contiguous and writable
        return image
    copy = np.empty((*image.shape[:2], 3), dtype=np.uint8)
    copy[:] = image if image.ndim == 3 else image[..., None]
    return copy


def read_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) as plain ints; UserError unless each is at least 1 and their product is below 2**31."""
    try:
        height, width = size
    except (TypeError, ValueError):
        raise UserError(f"size must be (height, width), not {size!r}") from None
    for side in (height, width):
        if not isinstance(side, (int, np.integer)) or isinstance(side, bool) or side < 1:
            raise UserError(f"size must be two integers of at least 1, not {size!r}")
    if height * width >= 2**31:
        raise UserError(f"size {size!r} has 2**31 pixels or more; choose a smaller one")
    return int(height), int(width)
