"""Conversion of an encoder's weights to the layout of timm."""

import torch
from torch import Tensor

from sacl_train.nets.attention import SqueezeExcitation
from sacl_train.nets.encoder import Encoder, StagedEncoder

TIMM_DIVISOR = 8  # timm rounds the inner width of SE up to a multiple of it


def timm_weights(encoder: Encoder) -> dict[str, Tensor]:
    """Return an encoder's state dict for the timm model of the same architecture, without classifier (num_classes=0).

    timm's model is `seresnet50` for se_resnet50 and `resnet50` for attention "none". The encoder must have the imagenet
    stem and attention "none", or "se" in standard placement.

    timm's SE layers are 1x1 convolutions with a bias, which is zero here. Their inner width is a multiple of 8: in the
    first stage of seresnet18 and seresnet34 it is 8 instead of 4, and the channels added are zero, which changes no
    feature.

    Parameters
    ----------
    encoder : Encoder
        An encoder of `nets.ENCODERS`.

    Returns
    -------
    dict of str to Tensor
    """
    weights = encoder.state_dict()
    for name, module in encoder.named_modules():
        if isinstance(module, SqueezeExcitation):
            down, up = weights[f"{name}.fc1.weight"], weights[f"{name}.fc2.weight"]
            extra = -len(down) % TIMM_DIVISOR
            down = torch.cat([down, down.new_zeros(extra, down.shape[1])])
            up = torch.cat([up, up.new_zeros(len(up), extra)], dim=1)
            for layer, weight in (("fc1", down), ("fc2", up)):
                weights[f"{name}.{layer}.weight"] = weight[:, :, None, None]
                weights[f"{name}.{layer}.bias"] = weight.new_zeros(len(weight))
    return weights


def find_stem(encoder: Encoder) -> str:
    """Return the stem of one of our encoders, one of `stem.STEMS`, as its first convolution shows."""
    assert isinstance(encoder, StagedEncoder)
    first = encoder.conv1
    if first.kernel_size[0] == 7:
        return "imagenet"
    return "cifar" if first.stride[0] == 1 else "cifar-stride2"
