"""Encoders derived from torchvision's ResNet v1.5 (He et al. 2016; SACL section 2.3).

Parameter names are torchvision's, so the state dict of a plain ResNet loads with strict=False: only the attention
modules are missing, and only the classifier `fc.*` is unexpected.
"""

from collections.abc import Sequence
from functools import partial

from torch import nn
from torchvision.models.resnet import ResNet

from sacl_train.nets.blocks import BasicBlock, Block, Bottleneck, Stage
from sacl_train.nets.encoder import StagedEncoder
from sacl_train.nets.stem import build_stem


class ResNetEncoder(StagedEncoder, ResNet):
    """torchvision's ResNet without its classifier. Features: (N, 512 * block.expansion).

    Parameters
    ----------
    block : type
        `BasicBlock` or `Bottleneck`.
    layers : sequence of int
        Blocks of each of the four stages.
    stem : str
        One of `stem.STEMS`.
    """

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
        for i in range(1, 5):
            setattr(self, f"layer{i}", Stage(*getattr(self, f"layer{i}")))

    def stages(self) -> list[Stage]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def new_last_stage(self) -> Stage:
        self.inplanes = 256 * self.block.expansion
        return Stage(*ResNet._make_layer(self, self.block, 512, len(self.layer4)))


basic_resnet = partial(ResNetEncoder, BasicBlock)
bottleneck_resnet = partial(ResNetEncoder, Bottleneck)
