"""SE-ResNet on torchvision's ResNet v1.5 (He et al. 2016; Hu et al. 2018 §4; SACL §2.3).

Parameter names are torchvision's, so a plain ResNet's state dict loads with strict=False: only `*.se.*` is missing
and only the classifier `fc.*` is left over.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from sacl_train.nets.attention import SqueezeExcitation
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.stem import build_stem

# The blocks repeat torchvision's forward because SE sits in its middle: after the last BN of the residual branch,
# before the sum (the standard placement of SACL fig. 6 and table 4).


class SEBasicBlock(BasicBlock):
    """Two 3x3 convolutions, then SE on the residual branch. Arguments are torchvision's."""

    def __init__(self, inplanes: int, planes: int, *args: object, **kwargs: object) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.se = SqueezeExcitation(planes * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) -> (N, planes, H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut)


class SEBottleneck(Bottleneck):
    """1x1, 3x3 (with the stride: v1.5), 1x1 convolutions, then SE on the residual branch."""

    def __init__(self, inplanes: int, planes: int, *args: object, **kwargs: object) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.se = SqueezeExcitation(planes * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) -> (N, 4 planes, H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.se(self.bn3(self.conv3(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut)


class ResNetEncoder(ResNet, Encoder):
    """torchvision's ResNet without its classifier: forward gives the pooled features (N, out_features)."""

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: Sequence[int], stem: str) -> None:
        super().__init__(block, list(layers))
        self.out_features = 512 * block.expansion
        self.fc = nn.Identity()
        self.conv1, self.maxpool = build_stem(stem, 64)


def basic_resnet(layers: Sequence[int], stem: str, attention: str) -> ResNetEncoder:
    """ResNet-18 or -34, by `layers`; attention "se" or "none"."""
    return ResNetEncoder(SEBasicBlock if attention == "se" else BasicBlock, layers, stem)


def bottleneck_resnet(layers: Sequence[int], stem: str, attention: str) -> ResNetEncoder:
    """ResNet-50 or -101, by `layers`; attention "se" or "none"."""
    return ResNetEncoder(SEBottleneck if attention == "se" else Bottleneck, layers, stem)
