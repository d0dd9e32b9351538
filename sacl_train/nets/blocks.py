"""Residual blocks with a slot for attention, and stages of them (He et al. 2016; Hu et al. 2018, section 6.4)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock as PlainBasicBlock
from torchvision.models.resnet import Bottleneck as PlainBottleneck

from sacl_train.nets.attention import ATTENTION
from sacl_train.nets.norms import Uncounted, normalise_apart
from texturegen.errors import UserError


class _AttentionBlock(nn.Module):
    """torchvision's residual block with attention in one of the placements of SACL fig. 6 and table 4.

    "standard": on the residual branch, after its last BN and before the sum. "pre": before the residual branch.
    "post": after the sum and its ReLU. "identity": on the shortcut.

    Attributes
    ----------
    se : nn.Module
        The attention module of any kind; the name `se` is timm's. nn.Identity until `add_attention` sets it.
    placement : str
        One of `attention.PLACEMENTS`.
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
        """Map (N, inplanes, H, W) to (N, expansion * planes, H / stride, W / stride)."""
        placement = self.placement
        branch = self.branch(self.se(x) if placement == "pre" else x)
        shortcut = x if self.downsample is None else self.downsample(x)
        if placement == "standard":
            branch = self.se(branch)
        elif placement == "identity":
            shortcut = self.se(shortcut)
        out = self.relu(branch + shortcut)
        return self.se(out) if placement == "post" else out

    def branch(self, x: Tensor) -> Tensor:
        """Return the residual branch of x, before attention and the sum."""
        raise NotImplementedError


class BasicBlock(_AttentionBlock, PlainBasicBlock):
    """Two 3x3 convolutions. Arguments are torchvision's."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        PlainBasicBlock.__init__(self, *args, **kwargs)
        self.se = nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(_AttentionBlock, PlainBottleneck):
    """1x1, 3x3 and 1x1 convolutions, the stride in the 3x3 (ResNet v1.5). Arguments are torchvision's."""

    conv3: nn.Conv2d
    bn3: nn.BatchNorm2d

    def __init__(self, *args: object, **kwargs: object) -> None:
        PlainBottleneck.__init__(self, *args, **kwargs)
        self.se = nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        return self.bn3(self.conv3(self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))))


Block = BasicBlock | Bottleneck


class Stage(nn.Sequential):
    """A sequence of blocks.

    Attributes
    ----------
    checkpointing : bool
        Recompute the activations of each block in the backward pass instead of storing them.
    """

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return super().forward(x)
        for block in self:

            def contexts(block: nn.Module = block) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                # Read now: the recomputation comes after the pass, when `encode_apart` has put them back.
                sizes = next((module.sizes for module in block.modules() if isinstance(module, Uncounted)), ())
                return nullcontext(), _recomputation(block, sizes)

            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return x


@contextmanager
def _recomputation(block: nn.Module, sizes: tuple[int, ...]) -> Iterator[None]:
    """Normalise as in the pass, batches of `sizes` each by itself, but do not update running statistics once more."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm)]
    saved = [(norm.momentum, norm.state_dict()["num_batches_tracked"].clone()) for norm in norms]
    for norm in norms:
        # With running statistics switched off, BatchNorm would save fewer tensors, and `checkpoint` would refuse that.
        norm.momentum = 0.0
    try:
        with normalise_apart([norm for norm in norms if isinstance(norm, Uncounted)], sizes):
            yield
    finally:
        for norm, (momentum, batches) in zip(norms, saved, strict=True):
            norm.momentum = momentum
            norm.state_dict()["num_batches_tracked"].copy_(batches)


def add_attention(stages: list[Stage], kind: str, placement: str) -> None:
    """Add attention to the blocks: to all of them, except "nonlocal".

    The cost of "nonlocal" is quadratic in the number of positions, so it is added to every second block of the two
    stages before the last, as in res3 and res4 of Wang et al. 2018, section 4.

    Parameters
    ----------
    stages : list of Stage
        All stages of an encoder, in order.
    kind : str
        One of `ATTENTION`.
    placement : str
        One of `attention.PLACEMENTS`.
    """
    make = ATTENTION[kind]
    if make is None:
        return
    for stage_index, stage in enumerate(stages):
        for block_index, block in enumerate(stage):
            is_before_last = len(stages) - 3 <= stage_index < len(stages) - 1
            if kind == "nonlocal" and not (is_before_last and block_index % 2 == 1):
                continue
            assert isinstance(block, BasicBlock | Bottleneck)
            norm = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            block.se = make(block.conv1.in_channels if placement == "pre" else norm.num_features)
            block.placement = placement


def zero_init_residual(encoder: nn.Module) -> None:
    """Set the scale of the last BN of each block to 0, so that a block starts as its shortcut (Goyal et al. 2017).

    Raises
    ------
    UserError
        If the encoder has none of these blocks.
    """
    blocks = [module for module in encoder.modules() if isinstance(module, BasicBlock | Bottleneck)]
    if not blocks:
        raise UserError("zero_init_residual does not apply to this encoder; set it to false")
    for block in blocks:
        nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)
