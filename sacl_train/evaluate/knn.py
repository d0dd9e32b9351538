"""Weighted k-nearest-neighbour classification (Wu et al. 2018, section 3.4), which needs no training."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from sacl_train.evaluate.interface import Classifier
from texturegen.errors import UserError

CHUNK = 512  # queries compared with the bank at once


def fit_knn(features: Tensor, labels: Tensor, k: Sequence[int] = (20, 200), tau: float = 0.07) -> dict[str, Classifier]:
    """Return a kNN classifier for each k, by name ("k=20").

    Parameters
    ----------
    features : Tensor float (M, C)
        The bank.
    labels : Tensor int64 (M,)
        Classes of the bank, 0 or above.
    k : sequence of int
        Numbers of neighbours, each at least 1; more than M means all.
    tau : float
        Temperature of the votes, above 0.

    Returns
    -------
    dict of str to Classifier

    Examples
    --------
    >>> bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    >>> classifiers = fit_knn(bank, labels, k=(1, 3))
    >>> list(classifiers)
    ['k=1', 'k=3']
    >>> classifiers["k=1"](torch.tensor([[0.1, 0.9, 0.2]])).argmax(1)
    tensor([1])
    """
    return {f"k={count}": partial(knn_predict, features, labels, k=count, tau=tau) for count in k}


def knn_predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int = 20, tau: float = 0.07) -> Tensor:
    """Return the votes of the k most similar bank features for each class.

    A neighbour votes exp((cosine - largest cosine) / tau). Subtracting the query's largest cosine prevents
    overflow and does not change the order of the classes.

    Parameters
    ----------
    bank : Tensor float (M, C)
        Features of the training images; need not be normalised.
    bank_labels : Tensor int64 (M,)
        Their classes, 0 or above.
    queries : Tensor float (N, C)
        Features to classify.
    k : int
        Number of neighbours, at least 1; more than M means all.
    tau : float
        Temperature, above 0.

    Returns
    -------
    Tensor float (N, classes)
        The votes; the largest is the prediction.

    Raises
    ------
    UserError
        If k or tau is out of range.
    """
    if k < 1 or not tau > 0:
        raise UserError(f"kNN: k must be at least 1 and tau above 0, not k {k} and tau {tau}")
    bank = F.normalize(bank, dim=1)
    classes = int(bank_labels.max()) + 1
    scores = []
    for chunk in F.normalize(queries, dim=1).split(CHUNK):
        similarity, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)  # (n, k)
        votes = torch.zeros(len(chunk), classes, device=chunk.device)
        scores.append(votes.scatter_add(1, bank_labels[nearest], ((similarity - similarity[:, :1]) / tau).exp()))
    return torch.cat(scores)


def knn_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, k: int = 20) -> float:
    """Return the top-1 accuracy of `knn_predict`.

    Parameters
    ----------
    bank, bank_labels, queries, k
        As in `knn_predict`.
    labels : Tensor int64 (N,)
        Classes of the queries.

    Returns
    -------
    float
        0..1.

    Examples
    --------
    >>> bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    >>> knn_accuracy(bank, labels, bank, labels, k=1)
    1.0
    """
    return (knn_predict(bank, bank_labels, queries, k).argmax(1) == labels).float().mean().item()
