"""Networks: ResNet encoders with attention, models of timm, encoders from files of other programs, heads, EMA target.

`build_encoder` makes an encoder by name; `foreign.open_encoder` reads one from a file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import sacl_train.extra  # noqa: F401 (says what to install)
from texturegen.errors import UserError, nearest

if TYPE_CHECKING:
    from sacl_train.nets.attention import ATTENTION, PLACEMENTS
    from sacl_train.nets.encoder import Encoder, StagedEncoder

__all__ = ["ATTENTION", "ENCODERS", "PLACEMENTS", "Encoder", "Entry", "build_encoder"]

_LOCATIONS = {"ATTENTION": "attention", "PLACEMENTS": "attention", "Encoder": "encoder"}


@dataclass(frozen=True)
class Entry:
    """Registry entry of an encoder. Its module, and with it torch, is imported only by `load`.

    Attributes
    ----------
    location : str
        "module:name" of its class or function, inside this package.
    blocks : int or tuple of int
        Blocks per stage.
    width : int or None
        Default number of channels of the first stage; None if the encoder has a fixed width.
    """

    location: str
    blocks: int | tuple[int, ...]
    width: int | None = None

    def features(self, width: int | None) -> int | None:
        """Return the dimensions of its features at a width; None for an encoder of a fixed width, 512 or more."""
        return None if self.width is None else 4 * (width or self.width)

    def load(self) -> "Callable[..., StagedEncoder]":
        """Import the encoder's module and return its constructor with `blocks` bound."""
        module, name = self.location.split(":")
        build: Callable[..., StagedEncoder] = getattr(import_module(f"{__name__}.{module}"), name)
        return partial(build, self.blocks)


# The registry: name -> encoder. All take a stem; only the CIFAR family takes a width.
ENCODERS: dict[str, Entry] = {
    "se_resnet18": Entry("resnet:basic_resnet", (2, 2, 2, 2)),
    "se_resnet34": Entry("resnet:basic_resnet", (3, 4, 6, 3)),
    "se_resnet50": Entry("resnet:bottleneck_resnet", (3, 4, 6, 3)),
    "se_resnet101": Entry("resnet:bottleneck_resnet", (3, 4, 23, 3)),
    "se_resnet20": Entry("cifar:CifarResNet", 3, width=16),
    "se_resnet8": Entry("cifar:CifarResNet", 1, width=32),
}


def build_encoder(
    name: str,
    stem: str = "auto",
    width: int | None = None,
    attention: str = "se",
    image_size: int | None = None,
    placement: str = "standard",
    checkpointing: bool = False,
) -> "Encoder":
    """Return a freshly initialised encoder.

    Parameters
    ----------
    name : str
        One of `ENCODERS`, or "timm:NAME" for a model of timm, whose architecture its name decides: stem must be "auto",
        attention "none", placement "standard" and width None.
    stem : str
        "imagenet", "cifar", "cifar-stride2", or "auto" to choose by `image_size`.
    width : int or None
        Channels of the first stage. Only the CIFAR family has this setting (se_resnet20: 16, se_resnet8: 32).
    attention : str
        "se" (SACL eq. 3, 4), "cbam", "gc", "nonlocal", "triplet", "abn" (SACL table 1), or "none" for the plain ResNet.
    image_size : int or None
        Side of the images in pixels; required by stem "auto". timm's vision transformers are built for it.
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
    if name.startswith("timm:"):
        from sacl_train.nets.timm_models import TimmEncoder

        given = {"stem": (stem, "auto"), "width": (width, None), "attention": (attention, "none")}
        for key, (value, only) in {**given, "placement": (placement, "standard")}.items():
            if value != only:
                raise UserError(
                    f"{key} '{value}' does not apply to {name}, whose name decides its architecture; set {key} to "
                    f"{'none' if only is None else only}"
                )
        return TimmEncoder(name, image_size, checkpointing)
    if name not in ENCODERS:
        raise UserError(
            f"unknown encoder '{name}'{nearest(name, ENCODERS)}; known: {', '.join(ENCODERS)}, and timm:NAME"
        )
    from sacl_train.nets.attention import check_attention
    from sacl_train.nets.stem import choose_stem

    check_attention(attention, placement)
    entry, settings = ENCODERS[name], {}
    if entry.width is not None:
        settings["width"] = entry.width if width is None else width
        if settings["width"] < 1:
            raise UserError(f"width must be at least 1, not {width}")
    elif width is not None:
        raise UserError(f"encoder '{name}' has a fixed width; remove width, or use se_resnet20 or se_resnet8")
    encoder = entry.load()(stem=choose_stem(stem, image_size), **settings)
    encoder.finish(attention, placement, checkpointing)
    return encoder


def __getattr__(name: str) -> Any:
    if name not in _LOCATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LOCATIONS[name]}"), name)
