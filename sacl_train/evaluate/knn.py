"""Weighted k-nearest-neighbour classification (Wu et al. 2018, section 3.4): no training, no settings to tune."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from texturegen.errors import UserError

CHUNK = 512


def fit_knn(
    features: Tensor, labels: Tensor, k: Sequence[int] = (20, 200), tau: float = 0.07
) -> dict[str, Callable[[Tensor], Tensor]]:
    """A classifier, queries float (N, C) -> votes (N, classes), for each k, named "k=20"."""
    return {f"k={number}": partial(knn_predict, features, labels, k=number, tau=tau) for number in k}


def knn_predict(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, k: int = 20, tau: float = 0.07
) -> torch.Tensor:
    """Class scores by the k most similar bank features, each voting exp((cosine - largest cosine) / tau).

    Relative to each query's largest cosine: the order of the classes is the same, and no vote overflows.

    Parameters
    ----------
    bank : float (M, C); bank_labels : int64 (M,), 0 or above. k above M means all M.
    queries : float (N, C).

    Returns
    -------
    float (N, classes): the votes; arg-max is the prediction.
    """
    if k < 1 or not tau > 0:
        raise UserError(f"kNN with k {k} and tau {tau}: k must be at least 1 and tau above 0")
    bank = F.normalize(bank, dim=1)
    classes = int(bank_labels.max()) + 1
    scores = []
    for chunk in F.normalize(queries, dim=1).split(CHUNK):
        similarity, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)  # (n, k)
        votes = torch.zeros(len(chunk), classes)
        scores.append(votes.scatter_add(1, bank_labels[nearest], ((similarity - similarity[:, :1]) / tau).exp()))
    return torch.cat(scores)


def knn_accuracy(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor, k: int = 20
) -> float:
    """Top-1 accuracy of `knn_predict`, 0..1."""
    return (knn_predict(bank, bank_labels, queries, k).argmax(1) == labels).float().mean().item()
