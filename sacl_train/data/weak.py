"""Weak augmentation of a whole batch on its device, from uint8 images to normalised views (SACL §2.1, §3.2).

"Chosen at random from a search space of common augmentations": a policy is a list of operations, each with a
probability. The geometric operations of a view are composed into one matrix, and the image is resampled once.

The parameters of a sample are hashed from (seed, epoch, sample, view), so they are the same in any batch, in any
process and on every device. Every operation is computed for the whole batch, and `torch.where` selects the samples that
it applies to: shapes do not depend on what is drawn and the host never waits for the device, so that a whole training
step can be compiled, and captured in a CUDA graph.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from sacl_train.data import colour, geometry
from sacl_train.data.device import constant
from sacl_train.data.draws import uniform
from texturegen.errors import UserError, nearest

CHUNK = 128 * 32 * 32  # pixels per image plane that a CPU processes at once
CROP_TRIALS = 10


class GeometricOp(Protocol):
    """A geometric operation, which draws a matrix per sample; see `geometry`.

    Attributes
    ----------
    STREAM : int
        First of the operation's words for `draws.uniform`. STREAM itself decides whether the operation is applied to a
        sample, and its parameters use STREAM + 1 onwards, so operations are independent of each other.
    """

    STREAM: ClassVar[int]

    def matrices(self, states: Tensor, height: int, width: int) -> Tensor:
        """Return matrices float32 (N, 3, 3), for states int64 (N,) and images of height x width pixels."""
        ...


class ColourOp(Protocol):
    """A photometric operation; STREAM as in `GeometricOp`."""

    STREAM: ClassVar[int]

    def apply(self, x: Tensor, states: Tensor) -> Tensor:
        """Return changed images, for float32 images (N, 3, H, W) in 0 to 1 and states int64 (N,); keep the input."""
        ...


@dataclass(frozen=True)
class Policy:
    """Operations in order, each with its probability of being applied to a sample; geometry comes first."""

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
    """Return an augmentation policy.

    Parameters
    ----------
    name : str
        "geometric": random resized crop, horizontal flip (p = 0.5), rotation and translation; SACL's weak augmentation.
        "mocov2": crop, flip, colour jitter (p = 0.8), grey, blur (p = 0.5); Chen et al. 2020, for the baselines.
        "colour-geometric": geometric, then mocov2's colour jitter and grey. "none": normalisation only.
    crop_scale : tuple of float
        Smallest and largest area of the crop, as a fraction of the image.
    degrees : float
        Maximum rotation in either direction, in degrees.
    shift : float
        Maximum translation along each axis, as a fraction of the view's side.
    jitter : tuple of float
        Strengths of brightness, contrast and saturation, 0 to 1, and the maximum shift of the hue, 0 to 0.5.
    grey : float
        Probability of greyscale.

    Raises
    ------
    UserError
        If the name is unknown.
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


class WeakAugment(nn.Module):
    """Makes one random view of each image.

    Parameters
    ----------
    policy : Policy or str
        A policy, or the name of one; UserError if it is unknown.
    mean, std : sequence of float
        Normalisation per channel, for pixels in 0 to 1.
    channels_last : bool
        Memory layout of the views.

    Examples
    --------
    >>> weak = WeakAugment("geometric", mean=(0.5,) * 3, std=(0.25,) * 3)
    >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> weak(images, torch.tensor([1, 2])).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self, policy: Policy | str, mean: Sequence[float], std: Sequence[float], channels_last: bool = False
    ) -> None:
        super().__init__()
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self.mean = mean
        self.std = std
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, images: Tensor, states: Tensor, geometric: Tensor | None = None) -> Tensor:
        """Return a view of each image.

        On a CPU, a view depends only on the image and its state, bit for bit, not on the rest of the batch.

        Parameters
        ----------
        images : Tensor, uint8 (N, 3, H, W)
        states : Tensor, int64 (N,)
            Random states: `Draws.of(number of the view)`.
        geometric : Tensor, int64 (N,), or None
            States that the geometry is drawn from, to give two images the same geometry; None: `states`.

        Returns
        -------
        Tensor, float32 (N, 3, H, W)
            Normalised, on the same device.
        """
        geometric = states if geometric is None else geometric
        if images.is_cuda:
            return self._views(images, states, geometric)
        # On a CPU a chunk and its temporaries fit into the processor's cache (benchmarks/augment.py --chunks).
        count = max(1, CHUNK // (images.shape[2] * images.shape[3]))
        chunks = zip(images.split(count), states.split(count), geometric.split(count), strict=True)
        return torch.cat([self._views(*chunk) for chunk in chunks])

    def compile(self, **options: Any) -> None:
        """Compile the views by torch.compile, with its `options`."""
        self._views = torch.compile(self._views, **options)  # type: ignore[method-assign]

    def _views(self, images: Tensor, states: Tensor, geometric: Tensor) -> Tensor:
        views = _to_float(images)
        if self.policy.geometry:
            views = geometry.warp(views, self._matrices(geometric, *images.shape[-2:]))
        for photometric, probability in self.policy.colour:
            if probability > 0:
                changed = photometric.apply(views, states)
                views = _select(states, photometric.STREAM, probability, changed, views)
        return _standardise(views, self.mean, self.std).contiguous(memory_format=self.memory_format)

    def _matrices(self, states: Tensor, height: int, width: int) -> Tensor:
        """Return the composed geometric operations, float32 (N, 3, 3)."""
        identity = torch.eye(3, device=states.device)
        matrices = identity.expand(len(states), 3, 3)
        for op, probability in self.policy.geometry:
            drawn = _select(states, op.STREAM, probability, op.matrices(states, height, width), identity)
            matrices = geometry.compose(matrices, drawn)
        return matrices


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x / 255 - mean) / std in float32 for images uint8 (N, 3, H, W): the encoder's input in evaluations."""
    return _standardise(_to_float(images), mean, std)


@dataclass(frozen=True)
class Crop:
    """Random resized crop: uniform area, log-uniform aspect ratio (Szegedy et al. 2015 §6).

    A box that exceeds the image is drawn again, as in torchvision: the first of ten that fits is used, else the largest
    central box with the nearest aspect ratio. torchvision rounds a box to whole pixels; this one is not rounded.
    """

    STREAM: ClassVar[int] = 0x100
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def matrices(self, states: Tensor, height: int, width: int) -> Tensor:
        words = range(self.STREAM + 1, self.STREAM + 3 + 2 * CROP_TRIALS)
        numbers = uniform(states, words).double()
        areas, ratios, places = numbers.split((CROP_TRIALS, CROP_TRIALS, 2))  # (10, N), (10, N), (2, N)
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

    def matrices(self, states: Tensor, height: int, width: int) -> Tensor:
        return geometry.flip_matrix(torch.ones_like(states, dtype=torch.bool))


@dataclass(frozen=True)
class Rotation:
    """Rotation about the view's centre, uniform in -degrees to degrees."""

    STREAM: ClassVar[int] = 0x300
    degrees: float = 15.0

    def matrices(self, states: Tensor, height: int, width: int) -> Tensor:
        angle = _between(uniform(states, self.STREAM + 1), -self.degrees, self.degrees) * (math.pi / 180)
        return geometry.rotation_matrix(angle, width / height)


@dataclass(frozen=True)
class Translation:
    """Translation, uniform in -shift to shift in both directions, as a fraction of the view's sides."""

    STREAM: ClassVar[int] = 0x400
    shift: float = 0.1

    def matrices(self, states: Tensor, height: int, width: int) -> Tensor:
        right, down = _between(uniform(states, range(self.STREAM + 1, self.STREAM + 3)), -self.shift, self.shift)
        return geometry.translation_matrix(right, down)


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast and saturation by factors in 1 +- strength, and a hue shift in +-hue, all uniform.

    The four are applied in a random order, drawn per sample.
    """

    STREAM: ClassVar[int] = 0x500
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def apply(self, x: Tensor, states: Tensor) -> Tensor:
        numbers = uniform(states, range(self.STREAM + 1, self.STREAM + 5))  # (4, N)
        keys = uniform(states, range(self.STREAM + 10, self.STREAM + 14))  # (4, N): the changes in order of their keys
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = torch.stack([_between(u, 1 - s, 1 + s) for u, s in zip(numbers[:3], strengths, strict=True)])
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
                x = colour.adjust_hue(x, _between(numbers[3], -self.hue, self.hue))
        return x


@dataclass(frozen=True)
class Grey:
    """Greyscale: the luma in all three channels."""

    STREAM: ClassVar[int] = 0x600

    def apply(self, x: Tensor, states: Tensor) -> Tensor:
        return colour.to_grey(x).expand_as(x)


@dataclass(frozen=True)
class Blur:
    """Gaussian blur; the standard deviation is uniform in `sigma`, in pixels at 224 px, and scales with the image.

    Images of up to 64 pixels are not blurred: SimCLR omits blur on CIFAR-10 (Chen et al. 2020, B.9).
    """

    STREAM: ClassVar[int] = 0x700
    sigma: tuple[float, float] = (0.1, 2.0)

    def apply(self, x: Tensor, states: Tensor) -> Tensor:
        side = min(x.shape[-2:])
        if side <= 64:
            return x
        sigma = _between(uniform(states, self.STREAM + 1), *self.sigma) * (side / 224)
        radius = math.ceil(3 * self.sigma[1] * side / 224)  # beyond 3 sigma is only 0.3 % of a Gaussian
        return colour.gaussian_blur(x, sigma, radius)


def _select(states: Tensor, word: int, probability: float, changed: Tensor, unchanged: Tensor) -> Tensor:
    """Return `changed` (N, ...) for samples chosen with a probability, `unchanged` for the others."""
    if probability >= 1 or changed is unchanged:
        return changed
    chosen = uniform(states, word) < probability
    return torch.where(chosen.view(-1, *[1] * (changed.dim() - 1)), changed, unchanged)


def _between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Map numbers in [0, 1) to float32 from low to high."""
    return (low + (high - low) * numbers.double()).float()


def _to_float(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 in 0..255, not {images.dtype}")
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _standardise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean_of, std_of = (constant(tuple(values), x.device)[:, None, None] for values in (mean, std))
    return (x - mean_of).div_(std_of)
