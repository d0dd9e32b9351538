"""Residual blocks with a place for attention, and stages of them (He et al. 2016; Hu et al. 2018, section 6.4)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock as PlainBasicBlock
from torchvision.models.resnet import Bottleneck as PlainBottleneck

from sacl_train.nets.attention import ATTENTION


class _Attending(nn.Module):
    """torchvision's block with attention `se` in the placement of SACL fig. 6 and table 4.

    standard: on the residual branch, after its last BN and before the sum. pre: before the residual branch. post: after
    the sum and its ReLU. identity: on the shortcut. It is nn.Identity until `attend` puts some there, and the block
    the plain one. All are called `se`, as in timm.
    """

    placement = "standard"
    se: nn.Module
    downsample: nn.Module | None
    conv1: nn.Conv2d
    conv2: nn.Conv2d
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    relu: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) -> (N, expansion planes, H/stride, W/stride)."""
        place = self.placement
        branch = self.branch(self.se(x) if place == "pre" else x)
        shortcut = x if self.downsample is None else self.downsample(x)
        if place == "standard":
            branch = self.se(branch)
        elif place == "identity":
            shortcut = self.se(shortcut)
        out = self.relu(branch + shortcut)
        return self.se(out) if place == "post" else out

    def branch(self, x: Tensor) -> Tensor:
        """The residual branch."""
        raise NotImplementedError


class BasicBlock(_Attending, PlainBasicBlock):
    """Two 3x3 convolutions. Arguments are torchvision's."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        PlainBasicBlock.__init__(self, *args, **kwargs)
        self.se = nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(_Attending, PlainBottleneck):
    """1x1, 3x3 (with the stride: v1.5), 1x1 convolutions. Arguments are torchvision's."""

    conv3: nn.Conv2d
    bn3: nn.BatchNorm2d

    def __init__(self, *args: object, **kwargs: object) -> None:
        PlainBottleneck.__init__(self, *args, **kwargs)
        self.se = nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        return self.bn3(self.conv3(self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))))


Block = BasicBlock | Bottleneck


class Stage(nn.Sequential):
    """Blocks one after the other. `checkpointing`: a block's activations are computed again in the backward pass."""

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return super().forward(x)
        for block in self:

            def contexts(block: nn.Module = block) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), _statistics_kept(block)

            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return x


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """No running statistics move: the first pass has moved them, the one for the gradient must not do it again."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm)]
    before = [(norm.momentum, norm.state_dict()["num_batches_tracked"].clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # not without statistics: autograd counts what is saved
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.state_dict()["num_batches_tracked"].copy_(batches)


def attend(stages: list[Stage], kind: str, placement: str) -> None:
    """Put attention into the blocks: every one, but `nonlocal` into every other of the two stages before the last.

    Its cost is the square of the number of places: Wang et al. 2018, section 4, do the same in res3 and res4.
    """
    make = ATTENTION[kind]
    if make is None:
        return
    for number, stage in enumerate(stages):
        for place, block in enumerate(stage):
            if kind == "nonlocal" and not (len(stages) - 3 <= number < len(stages) - 1 and place % 2 == 1):
                continue
            assert isinstance(block, BasicBlock | Bottleneck)
            norm = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            block.se = make(block.conv1.in_channels if placement == "pre" else norm.num_features)
            block.placement = placement
