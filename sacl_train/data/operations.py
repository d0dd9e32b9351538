"""The random operations that policies of weak augmentation are made of.

An operation is computed for a whole batch, from numbers that `weak.WeakAugment` draws for all operations of a policy at
once; `WeakAugment` also selects the samples that it applies to.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sacl_train.data import colour, geometry

CROP_TRIALS = 10


class GeometricOp(Protocol):
    """A geometric operation, a matrix per sample; see `geometry`.

    Attributes
    ----------
    STREAM : int
        Word for `draws.uniform` of the number that decides whether the operation is applied to a sample.
    WORDS : tuple of int
        Words of the K numbers of its parameters. No other operation has the same ones, so all are independent.
    """

    STREAM: ClassVar[int]
    WORDS: ClassVar[tuple[int, ...]]

    def matrices(self, numbers: Tensor, height: int, width: int) -> Tensor:
        """Return matrices float32 (N, 3, 3), for numbers float32 (K, N) in [0, 1) and images of height x width."""
        ...


class ColourOp(Protocol):
    """A photometric operation; STREAM and WORDS as in `GeometricOp`."""

    STREAM: ClassVar[int]
    WORDS: ClassVar[tuple[int, ...]]

    def apply(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Return changed images, for float32 images (N, 3, H, W) in 0 to 1 and numbers (K, N); keep the input."""
        ...


@dataclass(frozen=True)
class Crop:
    """Random resized crop: uniform area, log-uniform aspect ratio (Szegedy et al. 2015 §6).

    A box that exceeds the image is drawn again, as in torchvision: the first of ten that fits is used, else the largest
    central box with the nearest aspect ratio. torchvision rounds a box to whole pixels; this one is not rounded.
    """

    STREAM: ClassVar[int] = 0x100
    WORDS: ClassVar[tuple[int, ...]] = tuple(range(0x101, 0x103 + 2 * CROP_TRIALS))
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def matrices(self, numbers: Tensor, height: int, width: int) -> Tensor:
        areas, ratios, places = numbers.double().split((CROP_TRIALS, CROP_TRIALS, 2))  # (10, N), (10, N), (2, N)
        areas = self.scale[0] + (self.scale[1] - self.scale[0]) * areas
        low, high = map(math.log, self.ratio)
        # From the aspect ratio in pixels to that of the fractions of the image's sides below.
        ratios = (low + (high - low) * ratios).exp() * (height / width)
        widths, heights = (areas * ratios).sqrt(), (areas / ratios).sqrt()
        central_width = min(1, self.ratio[1] * height / width)
        central_height = min(1, width / (self.ratio[0] * height))
        # The central box is an eleventh trial, which always fits; argmax returns the first True.
        widths = torch.cat([widths, torch.full_like(widths[:1], central_width)])
        heights = torch.cat([heights, torch.full_like(heights[:1], central_height)])
        first = ((widths <= 1) & (heights <= 1)).int().argmax(dim=0, keepdim=True)
        width_of, height_of = widths.gather(0, first)[0], heights.gather(0, first)[0]
        down, across = torch.where(first == CROP_TRIALS, 0.5, places)
        box = (down * (1 - height_of), across * (1 - width_of), height_of, width_of)
        return geometry.crop_matrix(*(side.float() for side in box))


@dataclass(frozen=True)
class Flip:
    """Horizontal flip; the policy selects the samples."""

    STREAM: ClassVar[int] = 0x200
    WORDS: ClassVar[tuple[int, ...]] = ()

    def matrices(self, numbers: Tensor, height: int, width: int) -> Tensor:
        return geometry.flip_matrix(torch.ones(numbers.shape[1], dtype=torch.bool, device=numbers.device))


@dataclass(frozen=True)
class Rotation:
    """Rotation about the view's centre, uniform in -degrees to degrees."""

    STREAM: ClassVar[int] = 0x300
    WORDS: ClassVar[tuple[int, ...]] = (0x301,)
    degrees: float = 15.0

    def matrices(self, numbers: Tensor, height: int, width: int) -> Tensor:
        angle = _between(numbers[0], -self.degrees, self.degrees) * (math.pi / 180)
        return geometry.rotation_matrix(angle, width / height)


@dataclass(frozen=True)
class Translation:
    """Translation, uniform in -shift to shift in both directions, as a fraction of the view's sides."""

    STREAM: ClassVar[int] = 0x400
    WORDS: ClassVar[tuple[int, ...]] = (0x401, 0x402)
    shift: float = 0.1

    def matrices(self, numbers: Tensor, height: int, width: int) -> Tensor:
        right, down = _between(numbers, -self.shift, self.shift)
        return geometry.translation_matrix(right, down)


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast and saturation by factors in 1 +- strength, and a hue shift in +-hue, all uniform.

    The four are applied in a random order, drawn per sample.
    """

    STREAM: ClassVar[int] = 0x500
    # Four amounts, then four keys: the changes are made in the order of their keys.
    WORDS: ClassVar[tuple[int, ...]] = (*range(0x501, 0x505), *range(0x50A, 0x50E))
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def apply(self, x: Tensor, numbers: Tensor) -> Tensor:
        amounts, keys = numbers.split(4)  # (4, N) each
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = torch.stack([_between(u, 1 - s, 1 + s) for u, s in zip(amounts[:3], strengths, strict=True)])
        qualities = keys[:3].argsort(dim=0, stable=True)  # (3, N), for `colour.scale`
        factors = factors.gather(0, qualities)
        precedes_hue = keys[:3].gather(0, qualities) < keys[3]
        # The hue takes most of the time, so it is not computed at each of the four positions: the changes before it in
        # a sample's order are applied first, then the hue, then the others. A factor of 1 changes nothing.
        for early in (True, False):
            if any(strengths):
                for quality, factor, precedes in zip(qualities, factors, precedes_hue, strict=True):
                    x = colour.scale(x, quality, torch.where(precedes == early, factor, 1.0))
            if early and self.hue:
                x = colour.adjust_hue(x, _between(amounts[3], -self.hue, self.hue))
        return x


@dataclass(frozen=True)
class Grey:
    """Greyscale: the luma in all three channels."""

    STREAM: ClassVar[int] = 0x600
    WORDS: ClassVar[tuple[int, ...]] = ()

    def apply(self, x: Tensor, numbers: Tensor) -> Tensor:
        return colour.to_grey(x).expand_as(x)


@dataclass(frozen=True)
class Blur:
    """Gaussian blur; the standard deviation is uniform in `sigma`, in pixels at 224 px, and scales with the image.

    Images of up to 64 pixels are not blurred: SimCLR omits blur on CIFAR-10 (Chen et al. 2020, B.9).
    """

    STREAM: ClassVar[int] = 0x700
    WORDS: ClassVar[tuple[int, ...]] = (0x701,)
    sigma: tuple[float, float] = (0.1, 2.0)

    def apply(self, x: Tensor, numbers: Tensor) -> Tensor:
        side = min(x.shape[-2:])
        if side <= 64:
            return x
        sigma = _between(numbers[0], *self.sigma) * (side / 224)
        radius = math.ceil(3 * self.sigma[1] * side / 224)  # beyond 3 sigma is only 0.3 % of a Gaussian
        return colour.gaussian_blur(x, sigma, radius)


@dataclass(frozen=True)
class Solarise:
    """Invert the values from `threshold` on (Grill et al. 2020, appendix B)."""

    STREAM: ClassVar[int] = 0xD00
    WORDS: ClassVar[tuple[int, ...]] = ()
    threshold: float = 0.5

    def apply(self, x: Tensor, numbers: Tensor) -> Tensor:
        return colour.solarise(x, self.threshold)


def _between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Map numbers in [0, 1) to float32 from low to high."""
    return (low + (high - low) * numbers.double()).float()
