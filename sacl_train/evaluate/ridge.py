"""Ridge regression onto the classes in closed form: a linear probe for a quick look, in seconds."""

import torch
from torch.nn import functional as F


def ridge_predict(
    features: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, penalty: float = 1e-2
) -> torch.Tensor:
    """Class scores of `queries` by least squares on one-hot labels.

    features : float (M, C); labels : int64 (M,), 0 or above; queries : float (N, C). Both are standardised by the
    training set; `penalty` is the ridge per training image. Returns float (N, classes).
    """
    mean, std = features.double().mean(0), features.double().std(0).clamp_min(1e-6)
    x, q = (features.double() - mean) / std, (queries.double() - mean) / std
    y = F.one_hot(labels).double()
    centre = y.mean(0)
    gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return (q @ torch.linalg.solve(gram, x.T @ (y - centre)) + centre).float()
