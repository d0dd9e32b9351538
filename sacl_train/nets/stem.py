"""Stems: from pixels to the first stage, by image size (SACL section 3.2; He et al. 2016, sections 4.1 and 4.2)."""

from torch import nn

from texturegen.errors import UserError, nearest

STEMS = ("imagenet", "cifar", "cifar-stride2")
MAX_SMALL_IMAGE = 64  # pixels; in smaller images, a stem of stride 4 would shrink a grid cell too much


def choose_stem(stem: str, image_size: int | None) -> str:
    """Return `stem`, with "auto" resolved by the image size.

    Parameters
    ----------
    stem : str
        One of `STEMS`, or "auto": "cifar" up to 64 px, "imagenet" above.
    image_size : int or None
        Side of the images in pixels; only "auto" needs it.

    Raises
    ------
    UserError
        If the name is unknown, or `stem` is "auto" and `image_size` is None.
    """
    if stem == "auto":
        if image_size is None:
            raise UserError(f"stem 'auto' needs the image size; pass image_size, or choose a stem: {', '.join(STEMS)}")
        return "cifar" if image_size <= MAX_SMALL_IMAGE else "imagenet"
    if stem not in STEMS:
        raise UserError(f"unknown stem '{stem}'{nearest(stem, STEMS)}; known: auto, {', '.join(STEMS)}")
    return stem


def build_stem(stem: str, channels: int) -> tuple[nn.Conv2d, nn.Module]:
    """Return the first convolution (3 -> channels) and the pooling that follows its BN and ReLU.

    "imagenet": 7x7 convolution of stride 2 and 3x3 max pooling of stride 2. "cifar": 3x3 convolution, no pooling.
    "cifar-stride2": 3x3 convolution of stride 2, no pooling; a quarter of the FLOPs of "cifar", for CPUs.

    Parameters
    ----------
    stem : str
        One of `STEMS`.
    channels : int
        Output channels of the convolution.
    """
    pool: nn.Module = nn.Identity()
    if stem == "imagenet":
        conv = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False)
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    else:
        stride = 2 if stem == "cifar-stride2" else 1
        conv = nn.Conv2d(3, channels, kernel_size=3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, pool
