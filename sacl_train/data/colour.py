"""Photometric augmentation of a batch with a factor per sample; the formulas are torchvision's (and Pillow's).

Images are float (N, 3, H, W), RGB from 0 to 1, and stay in that range. Factors are float (N,) on the images' device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def to_grey(x: Tensor) -> Tensor:
    """Return the luma (ITU-R BT.601), (N, 1, H, W)."""
    red, green, blue = x.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the brightness: factor 0 is black, 1 leaves the image unchanged."""
    return (x * _per_sample(factor)).clamp(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the contrast: factor 0 is the image's mean grey, 1 leaves it unchanged."""
    # In a batch of one, torch splits one long sum among threads, which rounds differently; two short sums avoid that.
    mean = to_grey(x).mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
    return _blend(x, mean, factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the saturation: factor 0 is grey, 1 leaves the image unchanged."""
    return _blend(x, to_grey(x), factor)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by `shift`, a fraction of the colour circle, -0.5 to 0.5; saturation and value do not change."""
    red, green, blue = x.unbind(dim=1)
    value, chroma = x.amax(dim=1), x.amax(dim=1) - x.amin(dim=1)  # (N, H, W)
    divisor = torch.where(chroma > 0, chroma, 1)  # grey pixels: the chroma is 0, so the hue does not matter
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )  # sixths of the circle
    hue = hue + 6 * shift[:, None, None]
    # Back to RGB without branches: each channel is `value`, minus `chroma` where the hue is far from that channel.
    sector = torch.stack([(offset + hue) % 6 for offset in (5, 3, 1)], dim=1)  # (N, 3, H, W)
    distance = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * distance


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


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(x), x, _per_sample(factor)).clamp(0, 1)


def _per_sample(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]
