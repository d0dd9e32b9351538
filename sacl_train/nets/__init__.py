"""Networks: ResNet encoders with attention, heads and the EMA target. `build_encoder` makes an encoder by name."""

from collections.abc import Callable
from functools import partial

from sacl_train.nets.attention import ATTENTION, PLACEMENTS, check_attention
from sacl_train.nets.cifar import CifarResNet
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.resnet import basic_resnet, bottleneck_resnet
from sacl_train.nets.stem import choose_stem
from texturegen.errors import UserError, nearest

__all__ = ["ATTENTION", "ENCODERS", "PLACEMENTS", "Encoder", "build_encoder"]

# Encoders of fixed width take a stem; those of the CIFAR family take a width too.
ENCODERS: dict[str, Callable[..., Encoder]] = {
    "se_resnet18": partial(basic_resnet, (2, 2, 2, 2)),
    "se_resnet34": partial(basic_resnet, (3, 4, 6, 3)),
    "se_resnet50": partial(bottleneck_resnet, (3, 4, 6, 3)),
    "se_resnet101": partial(bottleneck_resnet, (3, 4, 23, 3)),
    "se_resnet20": partial(CifarResNet, blocks=3, width=16),
    "se_resnet8": partial(CifarResNet, blocks=1, width=32),
}


def build_encoder(
    name: str,
    stem: str = "auto",
    width: int | None = None,
    attention: str = "se",
    image_size: int | None = None,
    placement: str = "standard",
    checkpointing: bool = False,
) -> Encoder:
    """Return a freshly initialised encoder: images (N, 3, H, W) float -> features (N, encoder.out_features).

    stem: "imagenet", "cifar", "cifar-stride2", or "auto" to choose by `image_size`, the side in pixels.
    width: channels of the first stage; only the CIFAR family (se_resnet20: 16, se_resnet8: 32) has it.
    attention: "se", "cbam", "gc", "nonlocal", "triplet", "abn", or "none" for the plain ResNet of the same shape
    (Fast-MoCo's encoder); placement: where in a block, "standard", "pre", "post" or "identity" (SACL table 4).
    checkpointing: activations within a block are computed again in the backward pass instead of being kept.
    Raises UserError for an unknown name, and for a width or placement where none can be set.
    """
    if name not in ENCODERS:
        raise UserError(f"unknown encoder '{name}'{nearest(name, ENCODERS)}; known: {', '.join(ENCODERS)}")
    check_attention(attention, placement)
    settings: dict[str, int] = {}
    if width is not None:
        if getattr(ENCODERS[name], "func", None) is not CifarResNet:
            raise UserError(f"encoder '{name}' has a fixed width; only those of the CIFAR family take one")
        if width < 1:
            raise UserError(f"width must be at least 1, not {width}")
        settings["width"] = width
    encoder = ENCODERS[name](stem=choose_stem(stem, image_size), **settings)
    encoder.finish(attention, placement, checkpointing)
    return encoder
