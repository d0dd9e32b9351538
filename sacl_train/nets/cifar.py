"""The CIFAR family of small ResNets (He et al. 2016 §4.2), with SE (Hu et al. 2018 §4.1).

Depth 6n+2: a stem, three stages of n two-layer blocks with w, 2w and 4w channels, global average pooling. Shortcuts
where the width grows are the paper's option A (subsample and pad with zero channels), so they have no parameters.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from sacl_train.nets.encoder import Encoder
from sacl_train.nets.resnet import SEBasicBlock
from sacl_train.nets.stem import build_stem


class CifarResNet(Encoder):
    """n blocks a stage, `width` channels in the first; attention "se" or "none". Features: (N, 4 width)."""

    def __init__(self, blocks: int, width: int, stem: str, attention: str) -> None:
        super().__init__()
        block = SEBasicBlock if attention == "se" else BasicBlock
        self.conv1, self.maxpool = build_stem(stem, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(block, blocks, width, width, stride=1)
        self.layer2 = _stage(block, blocks, width, 2 * width, stride=2)
        self.layer3 = _stage(block, blocks, 2 * width, 4 * width, stride=2)
        self.out_features = 4 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> features (N, 4 width)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean(dim=(2, 3))


class PadShortcut(nn.Module):
    """Option A: (N, C, H, W) -> (N, C + extra, ceil(H/2), ceil(W/2)): every second pixel, then zero channels."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))


def _stage(block: type[BasicBlock], blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    shortcut = PadShortcut(outputs - inputs) if stride == 2 else None
    first = block(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(block(outputs, outputs) for _ in range(blocks - 1)))
