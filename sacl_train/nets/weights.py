"""Conversion of an encoder's weights to the layout of other libraries."""

import torch
from torch import Tensor

from sacl_train.nets.attention import SqueezeExcitation
from sacl_train.nets.encoder import Encoder


def timm_weights(encoder: Encoder) -> dict[str, Tensor]:
    """Return an encoder's state dict for the timm model of the same architecture.

    timm's model is `seresnet50` for se_resnet50 and `resnet50` for attention "none". Load the dict with strict=False:
    the classifier `fc.*` is missing. The encoder must have the imagenet stem and attention "none", or "se" in standard
    placement.

    timm's SE layers are 1x1 convolutions with a bias, which is zero here. timm also rounds the inner width of SE up to
    a multiple of 8, which changes seresnet18 and seresnet34; create those with
    `block_args=dict(attn_layer=partial(timm.layers.SEModule, rd_divisor=1))`.

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
            for layer in ("fc1", "fc2"):
                weight = weights[f"{name}.{layer}.weight"]
                weights[f"{name}.{layer}.weight"] = weight[:, :, None, None]
                weights[f"{name}.{layer}.bias"] = torch.zeros(len(weight))
    return weights
