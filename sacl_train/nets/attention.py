"""Attention modules for convolutional blocks, by name (SACL table 1). Each maps (N, C, H, W) to the same shape."""

from collections.abc import Callable

import torch
from timm.layers import GlobalContext, NonLocalAttn
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from texturegen.errors import UserError, nearest

REDUCTION = 16  # r in SACL eq. 3, chosen in Hu et al. 2018, table 10
PLACEMENTS = ("standard", "pre", "post", "identity")


class SqueezeExcitation(nn.Module):
    """Channel attention by squeeze and excitation (Hu et al. 2018, section 3; SACL eq. 3, 4).

    S = sigmoid(W2 relu(W1 GAP(u))) and U = S u, with W1: C -> max(C // r, 1) and W2 back to C. Neither layer has a
    bias, so a block adds exactly the 2 C^2 / r parameters of SACL eq. 5.

    Parameters
    ----------
    channels : int
        C.
    reduction : int
        r.
    """

    def __init__(self, channels: int, reduction: int = REDUCTION) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Linear(channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """Scale each channel of u (N, C, H, W) by a weight in (0, 1)."""
        squeezed = u.mean(dim=(2, 3))  # (N, C)
        scale = torch.sigmoid(self.fc2(torch.relu(self.fc1(squeezed))))  # (N, C)
        return u * scale[:, :, None, None]


class TripletAttention(nn.Module):
    """Triplet attention: the mean of three gates, one per axis of the feature map (Misra et al. 2021, eq. 1, 2).

    Each gate pools its axis to (max, mean); a 7x7 convolution, BN and a sigmoid then give one weight for every position
    along the other two axes.

    Parameters
    ----------
    channels : int
        C; unused, since the gates are shared by all channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1), nn.Sigmoid()) for _ in range(3)
        )

    def forward(self, u: Tensor) -> Tensor:
        """Return u (N, C, H, W) multiplied by the mean of the gates."""
        total = torch.zeros_like(u)
        for gate, axis in zip(self.gates, (1, 2, 3), strict=True):
            pooled = torch.stack([u.amax(axis), u.mean(axis)], dim=1)  # (N, 2, the other two axes)
            total = total + u * gate(pooled).squeeze(1).unsqueeze(axis)
        return total / 3


def _cbam(channels: int) -> nn.Module:
    """Channel attention from mean and max pooling, then 7x7 spatial attention (Woo et al. 2018)."""
    return CbamModule(channels, rd_channels=max(channels // REDUCTION, 1))


def _global_context(channels: int) -> nn.Module:
    """One attention map shared by all positions, added through a bottleneck (Cao et al. 2019, figure 4d)."""
    # At least 8 inner channels: layer norm over one channel is constant, and over two it keeps only a sign.
    return GlobalContext(channels, fuse_add=True, fuse_scale=False, rd_channels=max(channels // REDUCTION, 8))


def _non_local(channels: int) -> nn.Module:
    """Non-local block (Wang et al. 2018, section 3): every position attends to every other, in C/2 inner channels."""
    return NonLocalAttn(channels, rd_channels=max(channels // 2, 1))


# The registry: name -> module for a block of C channels. None: no module inside the blocks ("abn" is one branch
# of the whole encoder, see `branch`).
ATTENTION: dict[str, Callable[[int], nn.Module] | None] = {
    "se": SqueezeExcitation,
    "cbam": _cbam,
    "gc": _global_context,
    "nonlocal": _non_local,
    "triplet": TripletAttention,
    "abn": None,
    "none": None,
}


def check_attention(kind: str, placement: str) -> None:
    """Raise UserError unless both names are known and can be combined.

    Parameters
    ----------
    kind : str
        One of `ATTENTION`.
    placement : str
        One of `PLACEMENTS`.
    """
    for name, value, known in (("attention", kind, tuple(ATTENTION)), ("placement", placement, PLACEMENTS)):
        if value not in known:
            raise UserError(f"unknown {name} '{value}'{nearest(value, known)}; known: {', '.join(known)}")
    if placement != "standard" and ATTENTION[kind] is None:
        raise UserError(f"placement '{placement}' does not apply to attention '{kind}', which has no module in a block")
