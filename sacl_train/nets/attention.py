"""Channel attention: squeeze-and-excitation (Hu et al. 2018 §3; SACL eq. 3-5)."""

import torch
from torch import Tensor, nn

REDUCTION = 16  # r of eq. 3; Hu et al. 2018 table 10


class SqueezeExcitation(nn.Module):
    """Scale every channel by a weight in (0, 1) computed from the global average of all channels.

    S = sigmoid(W2 relu(W1 GAP(u))), U = S u (SACL eq. 3, 4), with W1: C -> max(C // r, 1) and W2 back to C.
    Both are without bias, so that a block costs the 2 C^2 / r parameters of eq. 5 exactly.
    """

    def __init__(self, channels: int, reduction: int = REDUCTION) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Linear(channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) -> the same shape, rescaled."""
        squeezed = u.mean(dim=(2, 3))  # (N, C)
        scale = torch.sigmoid(self.fc2(torch.relu(self.fc1(squeezed))))  # (N, C)
        return u * scale[:, :, None, None]
