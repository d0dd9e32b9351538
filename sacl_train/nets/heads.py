"""Projectors and predictors: the heads between an encoder and the loss (SACL section 3.2; the baselines' papers)."""

import itertools

from torch import nn


def projector(
    features: int, hidden: int = 2048, out: int = 2048, layers: int = 3, affine: bool = True
) -> nn.Sequential:
    """Return the projection head g: (M, features) -> (M, out) (SACL section 3.2; Chen & He 2021, section 3).

    Linear layers with BN after each and ReLU after all but the last. The linear layers have no bias, because BN would
    cancel it.

    Parameters
    ----------
    features, hidden, out : int
        Dimensions of the input, of the hidden layers and of the output.
    layers : int
        Number of linear layers, at least 1.
    affine : bool
        Give the last BN a scale and a shift; SimSiam's code does not.
    """
    widths = [features, *[hidden] * (layers - 1)]
    hidden_layers = [
        layer
        for before, after in itertools.pairwise(widths)
        for layer in (nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True))
    ]
    return nn.Sequential(*hidden_layers, nn.Linear(widths[-1], out, bias=False), nn.BatchNorm1d(out, affine=affine))


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


def mlp(features: int, hidden: int, out: int, norm: bool = False, out_norm: bool = False) -> nn.Sequential:
    """Return a two-layer head: (M, features) -> (M, out), with ReLU in between (Chen et al. 2020; Grill et al. 2020).

    Parameters
    ----------
    features, hidden, out : int
        Dimensions of the input, the hidden layer and the output.
    norm : bool
        Add BN before the ReLU, as BYOL does.
    out_norm : bool
        Add BN at the end, as SimCLR's code does.
    """
    norms = [nn.BatchNorm1d(hidden)] if norm else []
    ends = [nn.BatchNorm1d(out)] if out_norm else []
    return nn.Sequential(nn.Linear(features, hidden), *norms, nn.ReLU(inplace=True), nn.Linear(hidden, out), *ends)


def deep_mlp(features: int, hidden: int, out: int) -> nn.Sequential:
    """Return a three-layer head: (M, features) -> (M, out) (Zbontar et al. 2021, section 2.2).

    `projector` without its last BN.

    Parameters
    ----------
    features, hidden, out : int
        Dimensions of the input, of both hidden layers and of the output.
    """
    return projector(features, hidden, out)[:-1]
