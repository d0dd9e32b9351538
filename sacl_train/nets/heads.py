"""Projector and predictor: the heads between an encoder and the contrastive loss (SACL §2, §3.2; Fast-MoCo §3)."""

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
