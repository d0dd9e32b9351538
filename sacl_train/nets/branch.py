"""The attention branch network (Fukui et al. 2019, section 3): one attention map before the last stage."""

import torch
from torch import Tensor, nn

MAX_MAPS = 1000  # the paper has one map for each of ImageNet's 1000 classes


class AttentionBranch(nn.Module):
    """Weight feature maps by an attention map m that a separate stage computes from them: x -> (1 + m(x)) x.

    The paper's branch also has a classifier, trained with labels. Contrastive training has no labels, so the map is
    learnt from the contrastive loss alone.

    Parameters
    ----------
    stage : nn.Module
        Maps (N, C, H, W) to (N, channels, H, W): a copy of the encoder's last stage, at stride 1.
    channels : int
        Output channels of `stage`.
    """

    def __init__(self, stage: nn.Module, channels: int) -> None:
        super().__init__()
        maps = min(MAX_MAPS, channels)
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
        """Map x (N, C, H, W) to the same shape; the attention map m is (N, 1, H, W) in (0, 1)."""
        return x + x * torch.sigmoid(self.head(self.stage(x)))
