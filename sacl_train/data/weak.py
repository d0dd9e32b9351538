"""Weak augmentation of a whole batch on its device, from uint8 images to normalised views (SACL §2.1, §3.2).

"Chosen at random from a search space of common augmentations": a policy is a list of operations, each with a
probability. All geometric ones of a view are composed into one matrix and resampled once; every sample has its own
parameters. They are drawn from a CPU generator and then moved, so a seed gives the same views on every device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from sacl_train.data import colour, geometry
from texturegen.errors import UserError, nearest


class GeometricOp(Protocol):
    """Draws a matrix per sample (see `geometry`): (count, 3, 3) on the CPU, for images of height x width."""

    def matrices(self, count: int, height: int, width: int, generator: Generator) -> Tensor: ...


class ColourOp(Protocol):
    """Changes float images (N, 3, H, W) in 0..1, with parameters drawn per sample."""

    def apply(self, x: Tensor, generator: Generator) -> Tensor: ...


@dataclass(frozen=True)
class Policy:
    """Operations in their order, each with the probability that it happens to a sample; geometry comes first."""

    geometry: tuple[tuple[GeometricOp, float], ...] = ()
    colour: tuple[tuple[ColourOp, float], ...] = ()


def make_policy(
    name: str,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    degrees: float = 15.0,
    shift: float = 0.1,
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    grey: float = 0.2,
) -> Policy:
    """Return the policy of that name; UserError when there is none.

    geometric: random resized crop, horizontal flip (p .5), rotation and translation: SACL's weak augmentation.
    mocov2: crop, flip, colour jitter (p .8), grey (p .2), blur (p .5): Chen et al. 2020, the baselines' own.
    colour-geometric: geometric, then mocov2's colour jitter and grey.
    none: nothing but normalisation.
    crop_scale: area of the crop, fraction of the image; degrees: rotation to either side; shift: translation to
    any side, fraction of the view; jitter: brightness, contrast, saturation, hue, and grey: its probability. They
    apply wherever the policy has such an operation.
    """
    crop_flip = ((Crop(crop_scale), 1.0), (Flip(), 0.5))
    all_geometry = (*crop_flip, (Rotation(degrees), 1.0), (Translation(shift), 1.0))
    jitter_grey = ((ColourJitter(*jitter), 0.8), (Grey(), grey))
    policies = {
        "geometric": Policy(all_geometry),
        "mocov2": Policy(crop_flip, (*jitter_grey, (Blur(), 0.5))),
        "colour-geometric": Policy(all_geometry, jitter_grey),
        "none": Policy(),
    }
    if name not in policies:
        raise UserError(f"unknown weak policy '{name}'{nearest(name, policies)}; known: {', '.join(policies)}")
    return policies[name]


class WeakAugment:
    """Makes one random view of each image: uint8 (N, 3, H, W) -> normalised float32 (N, 3, H, W), same device.

    policy: a Policy or the name of one. mean, std: per channel, of pixels in 0..1. An equal `generator` (a CPU
    torch.Generator, which advances) gives equal views. UserError for an unknown policy.
    """

    def __init__(self, policy: Policy | str, mean: Sequence[float], std: Sequence[float]) -> None:
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self.mean = mean
        self.std = std

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        count, _, height, width = images.shape
        views = _to_float(images)
        if self.policy.geometry:
            matrices = torch.eye(3).expand(count, 3, 3)
            for geometric, probability in self.policy.geometry:
                chosen = torch.rand(count, generator=generator) < probability
                drawn = geometric.matrices(count, height, width, generator)
                matrices = matrices @ torch.where(chosen[:, None, None], drawn, torch.eye(3))
            views = geometry.warp(views, matrices.to(images.device))
        for photometric, probability in self.policy.colour:
            chosen = (torch.rand(count, generator=generator) < probability).to(images.device)
            changed = photometric.apply(views, generator)
            views = torch.where(chosen[:, None, None, None], changed, views)
        return _standardise(views, self.mean, self.std)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (N, 3, H, W) -> float32 (x / 255 - mean) / std: what the encoder sees when it is evaluated."""
    return _standardise(_to_float(images), mean, std)


@dataclass(frozen=True)
class Crop:
    """Random resized crop (Szegedy et al. 2015 §6): area and aspect ratio of the box uniform and log-uniform.

    A side that would be longer than the image's is cut to it, where torchvision draws anew: no loop over samples.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def matrices(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        area = _uniform(count, *self.scale, generator)
        ratio = _uniform(count, math.log(self.ratio[0]), math.log(self.ratio[1]), generator).exp()
        ratio = ratio * height / width  # of the box in pixels -> of the fractions below
        crop_width = (area * ratio).sqrt().clamp(max=1)
        crop_height = (area / ratio).sqrt().clamp(max=1)
        top = torch.rand(count, generator=generator) * (1 - crop_height)
        left = torch.rand(count, generator=generator) * (1 - crop_width)
        return geometry.crop_matrix(top, left, crop_height, crop_width)


@dataclass(frozen=True)
class Flip:
    """Horizontal flip; how often is the policy's probability."""

    def matrices(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        return geometry.flip_matrix(torch.ones(count, dtype=torch.bool))


@dataclass(frozen=True)
class Rotation:
    """Rotation about the view's centre, uniform in +-degrees."""

    degrees: float = 15.0

    def matrices(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        angle = _uniform(count, -self.degrees, self.degrees, generator) * (math.pi / 180)
        return geometry.rotation_matrix(angle, width / height)


@dataclass(frozen=True)
class Translation:
    """Shift in both directions, uniform in +-shift (a fraction of the view's sides)."""

    shift: float = 0.1

    def matrices(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        right = _uniform(count, -self.shift, self.shift, generator)
        down = _uniform(count, -self.shift, self.shift, generator)
        return geometry.translation_matrix(right, down)


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast and saturation factors in 1 +- strength and a hue shift in +-hue, uniform.

    The four come in a random order, one order for the whole batch (torchvision: one per image).
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        steps = (
            (colour.adjust_brightness, 1, self.brightness),
            (colour.adjust_contrast, 1, self.contrast),
            (colour.adjust_saturation, 1, self.saturation),
            (colour.adjust_hue, 0, self.hue),
        )
        for number in torch.randperm(len(steps), generator=generator).tolist():
            adjust, centre, strength = steps[number]
            factor = _uniform(len(x), centre - strength, centre + strength, generator)
            x = adjust(x, factor.to(x.device))
        return x


@dataclass(frozen=True)
class Grey:
    """Luma in all three channels."""

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        return colour.to_grey(x).expand_as(x)


@dataclass(frozen=True)
class Blur:
    """Gaussian blur, sigma uniform in `sigma` pixels of a 224-pixel image and in proportion for others.

    Images of 64 pixels or less stay as they are: SimCLR leaves blur out on CIFAR-10 (Chen et al. 2020, B.9).
    """

    sigma: tuple[float, float] = (0.1, 2.0)

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        side = min(x.shape[-2:])
        sigma = _uniform(len(x), *self.sigma, generator) * (side / 224)
        if side <= 64:
            return x
        radius = math.ceil(3 * self.sigma[1] * side / 224)  # beyond 3 sigma a Gaussian has 0.3 % of its weight
        return colour.gaussian_blur(x, sigma.to(x.device), radius)


def _uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _to_float(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 in 0..255, not {images.dtype}")
    return images.to(torch.float32).div_(255)


def _standardise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """In place: callers own `x`, and a second copy of the batch would cost more than the arithmetic."""
    return x.sub_(x.new_tensor(mean)[:, None, None]).div_(x.new_tensor(std)[:, None, None])
