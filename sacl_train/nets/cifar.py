"""The CIFAR family of small ResNets (He et al. 2016, section 4.2) with attention (SE in Hu et al. 2018, section 4.1).

Depth 6n + 2: a stem, three stages of n two-layer blocks with w, 2w and 4w channels, and global average pooling.
Shortcuts that change the width use the paper's option A, which has no parameters: subsample, then append zero channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sacl_train.nets.blocks import BasicBlock, Stage
from sacl_train.nets.encoder import StagedEncoder, init_convolutions
from sacl_train.nets.stem import build_stem


class CifarResNet(StagedEncoder):
    """ResNet of the CIFAR family. Features: (N, 4 * width).

    Parameters
    ----------
    blocks : int
        n, blocks per stage.
    width : int
        w, channels of the first stage.
    stem : str
        One of `stem.STEMS`.
    """

    def __init__(self, blocks: int, width: int, stem: str) -> None:
        super().__init__()
        self.conv1, self.maxpool = build_stem(stem, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(blocks, width, width, stride=1)
        self.layer2 = _stage(blocks, width, 2 * width, stride=2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        self.abn = nn.Identity()
        self.out_features = 4 * width
        init_convolutions(self)

    def stages(self) -> list[Stage]:
        return [self.layer1, self.layer2, self.layer3]

    def new_last_stage(self) -> Stage:
        return _stage(len(self.layer3), self.out_features // 2, self.out_features, stride=1)


class PadShortcut(nn.Module):
    """Option A shortcut: subsample by `stride`, then append `extra` zero channels."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + extra, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> Stage:
    shortcut = PadShortcut(outputs - inputs, stride) if outputs != inputs else None
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return Stage(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))
