"""Base classes of encoders: the interface that heads and probes rely on, and what all our ResNets share."""

from torch import Tensor, nn

from sacl_train.nets.blocks import Stage, add_attention
from sacl_train.nets.branch import AttentionBranch


class Encoder(nn.Module):
    """A network from images float (N, 3, H, W), H and W large enough for its strides, to features (N, out_features).

    Attributes
    ----------
    out_features : int
        Dimensions of a feature vector.
    notes : tuple of str
        What a user should know about this encoder at the size of the images, a sentence each; for stderr.
    """

    out_features: int
    notes: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to features (N, out_features)."""
        raise NotImplementedError


class StagedEncoder(Encoder):
    """An encoder of a stem, stages of residual blocks, and global average pooling; its blocks take attention.

    Attributes
    ----------
    conv1, bn1, relu, maxpool : nn.Module
        The stem.
    abn : nn.Module
        Before the last stage; nn.Identity except with attention "abn".
    """

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    relu: nn.Module
    maxpool: nn.Module
    abn: nn.Module

    def stages(self) -> list[Stage]:
        """Return the stages in the order of the forward pass."""
        raise NotImplementedError

    def new_last_stage(self) -> Stage:
        """Return a new stage with the architecture of the last one, but stride 1."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to features (N, out_features): stem, stages, global average pooling."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        *early, last = self.stages()
        for stage in early:
            x = stage(x)
        return last(self.abn(x)).mean(dim=(2, 3))

    def finish(self, attention: str, placement: str, checkpointing: bool) -> None:
        """Add attention and initialise its weights. Called once, by `build_encoder`."""
        add_attention(self.stages(), attention, placement)
        if attention == "abn":
            self.abn = AttentionBranch(self.new_last_stage(), self.out_features)
            init_convolutions(self.abn)
        for module in self.modules():
            if isinstance(module, Stage):
                module.checkpointing = checkpointing


def init_convolutions(module: nn.Module) -> None:
    """Initialise all convolutions for ReLU, by fan-out, as torchvision's ResNets do (He et al. 2015, eq. 14)."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
