"""Resizing: an image to a square, and a large image to a shorter side."""

import cv2
import numpy as np


def fit_square(image: np.ndarray, size: int, short_side: int | None = None) -> np.ndarray:
    """Scale an image so that its short side is `short_side`, and crop size x size from the centre.

    Reduction averages over areas, because aliasing would look like texture; enlargement is bicubic.

    Parameters
    ----------
    image : uint8 (H, W, 3).
    size : side of the result in pixels.
    short_side : at least `size`; None: `size`.

    Returns
    -------
    uint8 (size, size, 3); `image` itself if it has this size already.
    """
    if short_side not in (None, size):
        edge = (short_side - size) // 2
        return np.ascontiguousarray(fit_square(image, short_side)[edge : edge + size, edge : edge + size])
    height, width = image.shape[:2]
    short = min(height, width)
    if (height, width) != (short, short):
        # Cropping first gives the same centre and spares scaling all of a long image.
        top, left = (height - short) // 2, (width - short) // 2
        image = np.ascontiguousarray(image[top : top + short, left : left + short])
    if short == size:
        return image
    method = cv2.INTER_AREA if short > size else cv2.INTER_CUBIC
    return cv2.resize(image, (size, size), interpolation=method)


def shrink_short(image: np.ndarray, short: int) -> np.ndarray:
    """Reduce an image so that its short side is `short` pixels, keeping the aspect ratio.

    An image (H, W, 3) whose short side is `short` or less is returned unchanged.
    """
    height, width = image.shape[:2]
    scale = short / min(height, width)
    if scale >= 1:
        return image
    return cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
