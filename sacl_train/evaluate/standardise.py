"""Mean and standard deviation of features, by which the linear probes standardise them."""

import torch
from torch import Tensor

PIECE = 8192  # features in float64 at once: copies of all features of ImageNet would take 20 GB each
MIN_STD = 1e-6  # of a dimension that is the same in all training images


def feature_scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each dimension.

    They are computed in float64: a float32 mean misses the value of a constant dimension by its rounding, which the
    division by the smallest deviation would turn into a number of any size.

    Parameters
    ----------
    features : Tensor float (M, C)
        M >= 1.

    Returns
    -------
    mean, std : Tensor float64 (C,)
        `std` has M - 1 degrees of freedom and is at least 1e-6; of a single image it is 1e-6.
    """
    count, pieces = len(features), features.split(PIECE)
    mean = torch.stack([x.double().sum(0) for x in pieces]).sum(0) / count
    squares = torch.stack([(x.double() - mean).square().sum(0) for x in pieces]).sum(0)
    return mean, (squares / max(count - 1, 1)).sqrt().clamp_min(MIN_STD)
