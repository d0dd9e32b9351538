"""One way to bring any image to a square of a given side, and one to make a large image smaller."""

import cv2
import numpy as np


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """Scale so that the short side is `size`, then cut size x size from the centre.

    Shrinking averages over areas (no aliasing, which would pass for texture); growing is cubic.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if (height, width) != (short, short):
        # Cut before scaling (the same pixels, as the centre is the centre), so that no long image is scaled whole.
        top, left = (height - short) // 2, (width - short) // 2
        image = np.ascontiguousarray(image[top : top + short, left : left + short])
    if short == size:
        return image
    method = cv2.INTER_AREA if short > size else cv2.INTER_CUBIC
    return cv2.resize(image, (size, size), interpolation=method)


def shrink_short(image: np.ndarray, short: int) -> np.ndarray:
    """Scale down so that the short side is `short`, aspect kept; an image no larger than that is returned as it is."""
    height, width = image.shape[:2]
    scale = short / min(height, width)
    if scale >= 1:
        return image
    return cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
