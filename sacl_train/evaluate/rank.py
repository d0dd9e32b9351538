"""RankMe: the effective rank of features (Garrido et al. 2023, "RankMe: assessing the downstream performance of
pretrained self-supervised representations by their rank", equations 1 and 2)."""

import torch
from torch import Tensor

EPSILON = 1e-7  # added to each share, as in the paper, for singular values of 0


def rank_me(features: Tensor) -> float:
    """Return the exponential of the entropy of the singular values.

    It is between 1, if all features are zero or multiples of one vector, and min(N, C). It falls when dimensions
    collapse, which the spread of the embeddings misses. Compare it only between runs with the same number of images
    and dimensions.

    Parameters
    ----------
    features : Tensor float (N, C)
        Not centred, as in the paper.

    Returns
    -------
    float
        At least 1.

    Examples
    --------
    >>> round(rank_me(torch.eye(5)), 3), round(rank_me(torch.ones(5, 5)), 3)
    (5.0, 1.0)
    """
    values = torch.linalg.svdvals(features.float())
    shares = values / values.sum().clamp_min(torch.finfo().tiny) + EPSILON  # the sum is 0 if all features are
    return float((-shares * shares.log()).sum().exp())
