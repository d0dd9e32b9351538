"""Figures of a detector from its scores: areas under curves, and the false positives at a given sensitivity."""

import math

import torch
from torch import Tensor


def detection_figures(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """Return how well a score separates two sets; larger means further outside.

    Parameters
    ----------
    inside, outside : Tensor float (M,), (N,)
        Scores of in-distribution and of out-of-distribution images.

    Returns
    -------
    dict of str to float
        "auroc": probability that an outside image has a larger score than an inside one; equal scores count a half.
        "aupr": average precision of finding the outside images; its chance level is N / (M + N). "fpr95": fraction of
        the outside images taken for inside at the threshold that accepts 95 % of the inside images. All in 0..1.

    Examples
    --------
    >>> detection_figures(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))
    {'auroc': 1.0, 'aupr': 1.0, 'fpr95': 0.0}
    """
    inside, outside = inside.double().cpu(), outside.double().cpu()
    return {"auroc": _auroc(inside, outside), "aupr": _aupr(inside, outside), "fpr95": _fpr(inside, outside, 0.95)}


def _auroc(inside: Tensor, outside: Tensor) -> float:
    ordered = inside.sort().values
    below, up_to = (torch.searchsorted(ordered, outside, right=right).double() for right in (False, True))
    return ((below + up_to) / 2 / len(inside)).mean().item()


def _aupr(inside: Tensor, outside: Tensor) -> float:
    thresholds, counts = outside.unique(return_counts=True)  # ascending; recall rises at these only
    counts = counts.double()  # torch divides integers in float32
    found = counts.flip(0).cumsum(0)
    wrong = len(inside) - torch.searchsorted(inside.sort().values, thresholds.flip(0))
    return ((counts.flip(0) / len(outside)) * (found / (found + wrong))).sum().item()


def _fpr(inside: Tensor, outside: Tensor, sensitivity: float) -> float:
    # The smallest threshold with which at least this share of the inside images have a score at or below it.
    accepted = math.ceil(round(sensitivity * len(inside), 6))
    threshold = inside.sort().values[accepted - 1]
    return (outside <= threshold).double().mean().item()
