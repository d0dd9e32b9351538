"""Weights in the shape that other libraries' models of the same name have them."""

import torch
from torch import Tensor

from sacl_train.nets.attention import SqueezeExcitation
from sacl_train.nets.encoder import Encoder


def timm_weights(encoder: Encoder) -> dict[str, Tensor]:
    """The state dict of an encoder for timm's model: `seresnet50` for se_resnet50, `resnet50` without attention.

    It loads with strict=False (the classifier `fc.*` is missing), for the imagenet stem and attention "se" in standard
    placement or "none". timm's SE layers are 1x1 convolutions with bias: here it is zero. timm also rounds their inner
    width up to a multiple of 8, which changes seresnet18 and seresnet34: make these with
    `block_args=dict(attn_layer=partial(timm.layers.SEModule, rd_divisor=1))`.
    """
    weights = encoder.state_dict()
    for name, module in encoder.named_modules():
        if isinstance(module, SqueezeExcitation):
            for layer in ("fc1", "fc2"):
                weight = weights[f"{name}.{layer}.weight"]
                weights[f"{name}.{layer}.weight"] = weight[:, :, None, None]
                weights[f"{name}.{layer}.bias"] = torch.zeros(len(weight))
    return weights
