"""What every encoder of the registry promises to the heads and the probes."""

from torch import nn


class Encoder(nn.Module):
    """A network images (N, 3, H, W) float -> features (N, out_features) float, of any H and W it can pool."""

    out_features: int
