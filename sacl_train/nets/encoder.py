"""What every encoder of the registry promises to the heads and the probes, and what they share."""

from torch import Tensor, nn

from sacl_train.nets.blocks import Stage, attend
from sacl_train.nets.branch import AttentionBranch


class Encoder(nn.Module):
    """A network images (N, 3, H, W) float -> features (N, out_features) float, of any H and W it can pool."""

    out_features: int
    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    relu: nn.Module
    maxpool: nn.Module
    abn: nn.Module  # before the last stage; nn.Identity but for attention "abn"

    def stages(self) -> list[Stage]:
        """In their order."""
        raise NotImplementedError

    def last_stage_again(self) -> Stage:
        """A new stage shaped like the last one, at stride 1."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> features (N, out_features): stem, stages, global average pooling."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        *early, last = self.stages()
        for stage in early:
            x = stage(x)
        return last(self.abn(x)).mean(dim=(2, 3))

    def finish(self, attention: str, placement: str, checkpointing: bool) -> None:
        """Put the attention in and set the initial weights of what that adds; called once by `build_encoder`."""
        attend(self.stages(), attention, placement)
        if attention == "abn":
            self.abn = AttentionBranch(self.last_stage_again(), self.out_features)
            init_convolutions(self.abn)
        for module in self.modules():
            if isinstance(module, Stage):
                module.checkpointing = checkpointing


def init_convolutions(module: nn.Module) -> None:
    """He et al. 2015, eq. 10, over the outputs: torchvision's for ResNets."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
