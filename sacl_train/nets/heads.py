"""Projectors and predictors: the heads between an encoder and the loss (SACL section 3.2; the baselines' papers)."""

from torch import nn


def projector(features: int, hidden: int = 2048, out: int = 2048) -> nn.Sequential:
    """Return the projection head g: (M, features) -> (M, out) (SACL section 3.2; Chen & He 2021, section 3).

    Three linear layers with BN after each and ReLU after the first two. The linear layers have no bias, because BN
    would cancel it.

    Parameters
    ----------
    features, hidden, out : int
        Dimensions of the input, of both hidden layers and of the output.
    """
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, out, bias=False),
        nn.BatchNorm1d(out),
    )


def predictor(features: int = 2048, hidden: int = 512) -> nn.Sequential:
    """Return the prediction head q: (M, features) -> (M, features) (SACL section 3.2; Chen & He 2021, section 3).

    A bottleneck of two linear layers, without BN or ReLU at the end.

    Parameters
    ----------
    features, hidden : int
        Dimensions of the input and output, and of the bottleneck between them.
    """
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, features),
    )


def mlp(features: int, hidden: int, out: int, norm: bool = False) -> nn.Sequential:
    """Return a two-layer head: (M, features) -> (M, out), with ReLU in between (Chen et al. 2020; Grill et al. 2020).

    Parameters
    ----------
    features, hidden, out : int
        Dimensions of the input, the hidden layer and the output.
    norm : bool
        Add BN before the ReLU, as BYOL does.
    """
    norms = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(features, hidden), *norms, nn.ReLU(inplace=True), nn.Linear(hidden, out))


def deep_mlp(features: int, hidden: int, out: int) -> nn.Sequential:
    """Return a three-layer head: (M, features) -> (M, out) (Zbontar et al. 2021, section 2.2).

    `projector` without its last BN.

    Parameters
    ----------
    features, hidden, out : int
        Dimensions of the input, of both hidden layers and of the output.
    """
    return projector(features, hidden, out)[:-1]
