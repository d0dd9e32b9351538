"""Photometric augmentation of a batch with a factor per sample; the formulas are torchvision's (and Pillow's).

Images are float (N, 3, H, W), RGB from 0 to 1, and stay in that range. Factors are float (N,) on the images' device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION = range(3)  # what `scale` can scale


def to_grey(x: Tensor) -> Tensor:
    """Return the luma (ITU-R BT.601), (N, 1, H, W)."""
    red, green, blue = x.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def scale(x: Tensor, quality: Tensor, factor: Tensor) -> Tensor:
    """Scale the brightness, the contrast or the saturation of each image.

    All three interpolate between the image and another one, so they are one operation for the whole batch.

    Parameters
    ----------
    x : Tensor (N, 3, H, W)
    quality : Tensor int64 (N,)
        BRIGHTNESS: factor 0 gives black; CONTRAST: the image's mean grey; SATURATION: the grey image.
    factor : Tensor (N,)
        1 leaves the image unchanged, bit for bit.
    """
    quality, grey = _per_sample(quality), to_grey(x)
    # In a batch of one, torch splits one long sum among threads, which rounds differently; two short sums avoid that.
    mean = grey.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
    other = torch.where(quality == SATURATION, grey, torch.where(quality == CONTRAST, mean, 0.0))
    return x.lerp(other, 1 - _per_sample(factor)).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by `shift`, a fraction of the colour circle, -0.5 to 0.5; saturation and value do not change."""
    red, green, blue = x.unbind(dim=1)
    value = x.amax(dim=1)  # (N, H, W)
    chroma = value - x.amin(dim=1)
    is_red, is_green = value == red, value == green
    difference = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    sector = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0))
    divisor = torch.where(chroma > 0, chroma, 1.0)  # grey pixels: the chroma is 0, so the hue does not matter
    hue = sector + difference / divisor + 6 * shift[:, None, None]  # sixths of the circle
    hue = hue - 6 * (hue / 6).floor()  # from 0 to 6; a CPU takes far longer for hue % 6
    # Back to RGB without branches: each channel is `value`, minus `chroma` where the hue is far from that channel's.
    far = (2 - (hue - 3).abs(), (hue - 2).abs() - 1, (hue - 4).abs() - 1)
    return torch.stack([value - chroma * distance.clamp_(0, 1) for distance in far], dim=1)


def solarise(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert the values from `threshold` on."""
    return torch.where(x >= threshold, 1 - x, x)


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur with a Gaussian of standard deviation `sigma` pixels, (N,), with reflection padding.

    The window is 2 * radius + 1 pixels wide and high; radius must be below H and W.
    """
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)[:, :, None, None, None]  # rows sum to 1
    # The rounding of a grouped convolution depends on the number of groups, so shifted images are summed instead.
    for dim, sides in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded = F.pad(x, sides, mode="reflect")
        total = padded.narrow(dim, 0, x.shape[dim]) * kernel[:, 0]
        for i in range(1, 2 * radius + 1):
            total.addcmul_(padded.narrow(dim, i, x.shape[dim]), kernel[:, i].expand_as(x))
        x = total
    return x


def _per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]
