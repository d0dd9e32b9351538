"""The attention branch network (Fukui et al. 2019, section 3): one map of weights before the last stage."""

import torch
from torch import Tensor, nn

MAPS = 1000  # the paper's are its classes, 1000


class AttentionBranch(nn.Module):
    """x (N, C, H, W) -> (1 + m) x, with a map m (N, 1, H, W) in (0, 1) that a stage of its own computes from x.

    stage: (N, C, H, W) -> (N, channels, H, W), shaped like the encoder's last one, at stride 1. The paper's branch also
    has a classifier, trained with labels; there are none here, so the map learns from the contrastive loss alone.
    """

    def __init__(self, stage: nn.Module, channels: int) -> None:
        super().__init__()
        maps = min(MAPS, channels)
        self.stage = stage
        self.head = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, maps, 1, bias=False),
            nn.BatchNorm2d(maps),
            nn.ReLU(inplace=True),
            nn.Conv2d(maps, 1, 3, padding=1, bias=False),
            nn.BatchNorm2d(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + x * torch.sigmoid(self.head(self.stage(x)))
