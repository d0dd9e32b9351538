"""Projector and predictor: the heads between an encoder and the loss (SACL §2, §3.2; Fast-MoCo §3; the baselines')."""

from torch import nn


def projector(features: int, hidden: int = 2048, out: int = 2048) -> nn.Sequential:
    """g: (M, features) -> (M, out). Three linear layers, BN after each, ReLU after the first two.

    The linear layers have no bias: the BN that follows would subtract it again.
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
    """q: (M, features) -> (M, features) through a bottleneck; no BN and no ReLU at the end."""
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, features),
    )


def mlp(features: int, hidden: int, out: int, norm: bool = False) -> nn.Sequential:
    """(M, features) -> (M, out): two linear layers and a ReLU between them, after a BN with `norm`."""
    norms = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(features, hidden), *norms, nn.ReLU(inplace=True), nn.Linear(hidden, out))


def deep_mlp(features: int, hidden: int, out: int) -> nn.Sequential:
    """(M, features) -> (M, out): three linear layers, BN and ReLU after the first two (Zbontar et al. 2021 §2.2)."""
    return projector(features, hidden, out)[:-1]
