"""Networks: ResNet encoders with attention, heads, and the EMA target. `build_encoder` makes an encoder by name."""

from collections.abc import Callable
from functools import partial

from sacl_train.nets.attention import ATTENTION, PLACEMENTS, check_attention
from sacl_train.nets.cifar import CifarResNet
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.resnet import basic_resnet, bottleneck_resnet
from sacl_train.nets.stem import choose_stem
from texturegen.errors import UserError, nearest

__all__ = ["ATTENTION", "ENCODERS", "PLACEMENTS", "Encoder", "build_encoder"]

# The registry: name -> encoder class. All take a stem; only the CIFAR family takes a width.
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
    """Return a freshly initialised encoder.

    Parameters
    ----------
    name : str
        One of `ENCODERS`.
    stem : str
        "imagenet", "cifar", "cifar-stride2", or "auto" to choose by `image_size`.
    width : int or None
        Channels of the first stage. Only the CIFAR family has this setting (se_resnet20: 16, se_resnet8: 32).
    attention : str
        "se" (SACL eq. 3, 4), "cbam", "gc", "nonlocal", "triplet", "abn" (SACL table 1), or "none" for the plain ResNet.
    image_size : int or None
        Side of the images in pixels; required by stem "auto".
    placement : str
        Position of the attention in a block: "standard", "pre", "post" or "identity" (SACL table 4).
    checkpointing : bool
        Recompute the activations of each block in the backward pass instead of storing them.

    Returns
    -------
    Encoder
        Maps images float (N, 3, H, W) to features float (N, encoder.out_features).

    Raises
    ------
    UserError
        If a name is unknown, or the width or placement does not apply to this encoder.

    Examples
    --------
    >>> import torch
    >>> encoder = build_encoder("se_resnet18", image_size=32)
    >>> encoder(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 512])
    """
    if name not in ENCODERS:
        raise UserError(f"unknown encoder '{name}'{nearest(name, ENCODERS)}; known: {', '.join(ENCODERS)}")
    check_attention(attention, placement)
    settings: dict[str, int] = {}
    if width is not None:
        if getattr(ENCODERS[name], "func", None) is not CifarResNet:
            raise UserError(f"encoder '{name}' has a fixed width; remove width, or use se_resnet20 or se_resnet8")
        if width < 1:
            raise UserError(f"width must be at least 1, not {width}")
        settings["width"] = width
    encoder = ENCODERS[name](stem=choose_stem(stem, image_size), **settings)
    encoder.finish(attention, placement, checkpointing)
    return encoder
