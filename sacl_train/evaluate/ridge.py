"""Ridge regression onto one-hot labels in closed form: a linear probe that takes seconds."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sacl_train.evaluate.interface import Classifier
from sacl_train.evaluate.standardise import PIECE, feature_scale
from texturegen.errors import UserError


def fit_ridge(features: Tensor, labels: Tensor, penalty: float = 1e-2) -> dict[str, Classifier]:
    """Fit a linear classifier by regularised least squares on one-hot labels.

    Features are standardised by the training set's mean and standard deviation; the computation is in float64.

    Parameters
    ----------
    features : Tensor float (M, C)
        Features of the training images.
    labels : Tensor int64 (M,)
        Their classes, 0 or above.
    penalty : float
        Ridge penalty per training image, above 0.

    Returns
    -------
    dict of str to Classifier
        One classifier, named "".

    Raises
    ------
    UserError
        If the penalty is not a finite number above 0.

    Examples
    --------
    >>> features = torch.eye(4).repeat(8, 1)
    >>> labels = torch.arange(4).repeat(8)
    >>> classify = fit_ridge(features, labels)[""]
    >>> classify(torch.eye(4)).argmax(1)
    tensor([0, 1, 2, 3])
    """
    if not 0 < penalty < math.inf:
        raise UserError(f"ridge: penalty must be a finite number above 0, not {penalty}")
    count, width, classes = len(features), features.shape[1], int(labels.max()) + 1
    mean, std = feature_scale(features)
    gram = penalty * count * torch.eye(width, dtype=mean.dtype, device=mean.device)
    sums, centre = gram.new_zeros(width, classes), gram.new_zeros(classes)  # sum of x in each class; mean of y
    for piece, of in zip(features.split(PIECE), labels.split(PIECE), strict=True):
        x = (piece.double() - mean) / std
        gram.addmm_(x.T, x)
        y = F.one_hot(of, classes).double()
        sums.addmm_(x.T, y)
        centre += y.sum(0) / count
    weight = torch.linalg.solve(gram, sums - torch.outer(sums.sum(1), centre))

    def classify(queries: Tensor) -> Tensor:
        return torch.cat([((x.double() - mean) / std @ weight + centre).float() for x in queries.split(PIECE)])

    return {"": classify}
