"""Attention for convolutional blocks, by name: feature maps (N, C, H, W) -> the same shape (SACL table 1)."""

from collections.abc import Callable

import torch
from timm.layers import GlobalContext, NonLocalAttn
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from texturegen.errors import UserError, nearest

REDUCTION = 16  # r of eq. 3; Hu et al. 2018 table 10
PLACEMENTS = ("standard", "pre", "post", "identity")


class SqueezeExcitation(nn.Module):
    """Scale every channel by a weight in (0, 1) computed from the global average of all (Hu et al. 2018 §3).

    S = sigmoid(W2 relu(W1 GAP(u))), U = S u (SACL eq. 3, 4), with W1: C -> max(C // r, 1) and W2 back to C.
    Both are without bias, so that a block costs the 2 C^2 / r parameters of eq. 5 exactly.
    """

    def __init__(self, channels: int, reduction: int = REDUCTION) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Linear(channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        squeezed = u.mean(dim=(2, 3))  # (N, C)
        scale = torch.sigmoid(self.fc2(torch.relu(self.fc1(squeezed))))  # (N, C)
        return u * scale[:, :, None, None]


class TripletAttention(nn.Module):
    """Mean of three gates, each seen along one of the three axes of the feature maps (Misra et al. 2021, eq. 1, 2).

    A gate pools its axis to (largest, mean), and a 7x7 convolution with BN and a sigmoid gives one weight for each
    place in the other two.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1), nn.Sigmoid()) for _ in range(3)
        )

    def forward(self, u: Tensor) -> Tensor:
        total = torch.zeros_like(u)
        for gate, axis in zip(self.gates, (1, 2, 3), strict=True):
            pooled = torch.stack([u.amax(axis), u.mean(axis)], dim=1)  # (N, 2, the other two)
            total = total + u * gate(pooled).squeeze(1).unsqueeze(axis)
        return total / 3


def _cbam(channels: int) -> nn.Module:
    """Woo et al. 2018: channel attention from mean and largest, then a 7x7 spatial one."""
    return CbamModule(channels, rd_channels=max(channels // REDUCTION, 1))


def _global_context(channels: int) -> nn.Module:
    """Cao et al. 2019, figure 4d: one attention map for all places, added after a bottleneck."""
    # A layer norm over one or two channels lets nothing through.
    return GlobalContext(channels, fuse_add=True, fuse_scale=False, rd_channels=max(channels // REDUCTION, 8))


def _non_local(channels: int) -> nn.Module:
    """Wang et al. 2018, section 3: every place looks at every other; half the channels within."""
    return NonLocalAttn(channels, rd_channels=max(channels // 2, 1))


# What a block gets of each kind; `none` has nothing, and `abn` is one branch of the encoder (`branch`).
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
    """UserError unless both are known and go together."""
    for name, value, known in (("attention", kind, tuple(ATTENTION)), ("placement", placement, PLACEMENTS)):
        if value not in known:
            raise UserError(f"unknown {name} '{value}'{nearest(value, known)}; known: {', '.join(known)}")
    if placement != "standard" and ATTENTION[kind] is None:
        raise UserError(f"placement '{placement}' is for attention within the blocks; '{kind}' has none there")
