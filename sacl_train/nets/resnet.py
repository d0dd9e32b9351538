"""Encoders on torchvision's ResNet v1.5 (He et al. 2016; SACL §2.3).

Parameter names are torchvision's, so a plain ResNet's state dict loads with strict=False: only the attention is missing
and only the classifier `fc.*` is left over.
"""

from collections.abc import Sequence
from functools import partial

from torch import nn
from torchvision.models.resnet import ResNet

from sacl_train.nets.blocks import BasicBlock, Block, Bottleneck, Stage
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.stem import build_stem


class ResNetEncoder(Encoder, ResNet):
    """torchvision's ResNet without its classifier. Features: (N, 512 expansion)."""

    layer1: Stage
    layer2: Stage
    layer3: Stage
    layer4: Stage

    def __init__(self, block: type[Block], layers: Sequence[int], stem: str) -> None:
        ResNet.__init__(self, block, list(layers))
        self.block = block
        self.out_features = 512 * block.expansion
        self.fc = nn.Identity()
        self.conv1, self.maxpool = build_stem(stem, 64)
        self.abn = nn.Identity()
        for number in range(1, 5):
            setattr(self, f"layer{number}", Stage(*getattr(self, f"layer{number}")))

    def stages(self) -> list[Stage]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def last_stage_again(self) -> Stage:
        self.inplanes = 256 * self.block.expansion
        return Stage(*ResNet._make_layer(self, self.block, 512, len(self.layer4)))


basic_resnet = partial(ResNetEncoder, BasicBlock)
bottleneck_resnet = partial(ResNetEncoder, Bottleneck)
