"""Mean and standard deviation of the pixels of a data set."""

import numpy as np

from texturegen.errors import UserError
from texturegen.shards import Shards


def channel_statistics(shards: Shards, at_most: int = 2000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, of pixels in 0..1.

    Uses up to `at_most` images, evenly spaced over the set. Damaged images are skipped; if all are damaged, the error
    of the last one is raised.
    """
    picked = np.unique(np.linspace(0, len(shards) - 1, min(len(shards), at_most)).astype(int))
    sums, count = np.zeros((2, 3)), 0
    for index in picked.tolist():
        try:
            pixels = shards[index].image.reshape(-1, 3) / 255.0
        except UserError as error:
            if count == 0 and index == picked[-1]:
                raise error from None
            continue
        sums += pixels.mean(0), (pixels**2).mean(0)
        count += 1
    mean, square = sums / count
    std = np.sqrt(np.maximum(square - mean**2, 1e-6))
    return tuple(float(round(v, 4)) for v in mean), tuple(float(round(v, 4)) for v in std)
