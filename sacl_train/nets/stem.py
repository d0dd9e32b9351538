"""Stems: how an encoder goes from pixels to its first stage, by image size (SACL §3.2; He et al. 2016 §4.1, §4.2)."""

from torch import nn

from texturegen.errors import UserError, nearest

STEMS = ("imagenet", "cifar", "cifar-stride2")
SMALL_IMAGE = 64  # pixels; up to here a stride of 4 before the first stage would leave too little of a grid cell


def choose_stem(stem: str, image_size: int | None) -> str:
    """Resolve "auto" by the image's side in pixels (cifar up to 64, else imagenet); UserError for unknown names."""
    if stem == "auto":
        if image_size is None:
            raise UserError(f"stem 'auto' needs the image size; give one, or one of the stems {', '.join(STEMS)}")
        return "cifar" if image_size <= SMALL_IMAGE else "imagenet"
    if stem not in STEMS:
        raise UserError(f"unknown stem '{stem}'{nearest(stem, STEMS)}; known: auto, {', '.join(STEMS)}")
    return stem


def build_stem(stem: str, channels: int) -> tuple[nn.Conv2d, nn.Module]:
    """Return the first convolution (3 -> channels, Kaiming initialised) and the pooling after its BN and ReLU.

    imagenet: 7x7/2 and 3x3/2 max pooling. cifar: 3x3/1, no pooling. cifar-stride2: 3x3/2, no pooling, a quarter
    of the FLOPs of `cifar`, for machines without an accelerator.
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
