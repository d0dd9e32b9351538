"""Weak augmentation of a whole batch on its device, from uint8 images to normalised views (SACL §2.1, §3.2).

"Chosen at random from a search space of common augmentations": a policy is a list of operations, each with a
probability. All geometric ones of a view are composed into one matrix and resampled once; every sample has its own
parameters, hashed from (seed, epoch, sample, view) on the CPU: the same in any batch, process and on every device.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from sacl_train.data import colour, geometry
from sacl_train.data.device import constant, to_device
from sacl_train.data.draws import uniform
from texturegen.errors import UserError, nearest

CHUNK = 128 * 32 * 32  # pixels that a CPU works on at once


class GeometricOp(Protocol):
    """Draws a matrix per sample (see `geometry`): (N, 3, 3) on the CPU, for images of height x width.

    states: uint64 (N,), from which `draws.uniform` takes the numbers from STREAM + 1 on; STREAM itself decides whether
    the operation happens at all. No two operations share one, so what one draws does not depend on the others.
    """

    STREAM: ClassVar[int]

    def matrices(self, states: np.ndarray, height: int, width: int) -> Tensor: ...


@dataclass(frozen=True)
class Change:
    """One thing done to some of a batch's images.

    Attributes
    ----------
    adjust : float images (n, 3, H, W) in 0..1, amounts float32 (n,) -> as many images.
    rows : int64 (n,), of the batch, ascending.
    amounts : float32 (n,).
    """

    adjust: Callable[[Tensor, Tensor], Tensor]
    rows: np.ndarray
    amounts: np.ndarray


class ColourOp(Protocol):
    """Says what is to be done to those rows of a batch that it happens to, in order; draws as in `GeometricOp`."""

    STREAM: ClassVar[int]

    def changes(self, states: np.ndarray, rows: np.ndarray, height: int, width: int) -> list[Change]: ...


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

    policy: a Policy or the name of one. mean, std: per channel, of pixels in 0..1. UserError for an unknown policy.
    """

    def __init__(self, policy: Policy | str, mean: Sequence[float], std: Sequence[float]) -> None:
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self.mean = mean
        self.std = std

    def __call__(self, images: Tensor, states: np.ndarray, geometric: np.ndarray | None = None) -> Tensor:
        """A sample's view is a function of its pixels and its state alone, to the bit on a CPU.

        states: uint64 (N,), of `Draws.of(number of the view)`. geometric: states that the geometry is drawn from
        instead, to show two images in the same way.
        """
        # On a CPU a chunk and its temporaries stay in the cache (benchmarks/augment.py --chunks).
        count = len(images) if images.is_cuda else max(1, CHUNK // (images.shape[2] * images.shape[3]))
        geometric = states if geometric is None else geometric
        parts = [
            self._views(images[i : i + count], states[i : i + count], geometric[i : i + count])
            for i in range(0, len(images), count)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _views(self, images: Tensor, states: np.ndarray, geometric: np.ndarray) -> Tensor:
        height, width = images.shape[-2:]
        changes: list[Change] = []
        for photometric, probability in self.policy.colour:
            rows = np.flatnonzero(uniform(states, photometric.STREAM) < probability)
            changes += photometric.changes(states, rows, height, width)
        matrices = self._matrices(geometric, height, width)
        sent, *places = to_device([matrices, *_arrays(changes)], images.device)  # all that is drawn, in one copy
        views = _to_float(images)
        if len(matrices):
            views = geometry.warp(views, sent)
        return _standardise(_changed(views, changes, places), self.mean, self.std)

    def _matrices(self, states: np.ndarray, height: int, width: int) -> np.ndarray:
        """All geometric operations as one: float32 (N, 3, 3); (0, 3, 3) where there are none."""
        matrices = torch.eye(3).expand(len(states) if self.policy.geometry else 0, 3, 3)
        for op, probability in self.policy.geometry:
            chosen = torch.from_numpy(uniform(states, op.STREAM) < probability)
            drawn = op.matrices(states, height, width)
            matrices = geometry.compose(matrices, torch.where(chosen[:, None, None], drawn, torch.eye(3)))
        return matrices.numpy()


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (N, 3, H, W) -> float32 (x / 255 - mean) / std: what the encoder sees when it is evaluated."""
    return _standardise(_to_float(images), mean, std)


@dataclass(frozen=True)
class Crop:
    """Random resized crop (Szegedy et al. 2015 §6): area and aspect ratio of the box uniform and log-uniform.

    A side that would be longer than the image's is cut to it, where torchvision draws anew: no loop over samples.
    """

    STREAM: ClassVar[int] = 0x100
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def matrices(self, states: np.ndarray, height: int, width: int) -> Tensor:
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * uniform(states, self.STREAM + 1).astype(float)
        low, high = np.log(self.ratio)
        ratio = np.exp(low + (high - low) * uniform(states, self.STREAM + 2).astype(float))
        ratio *= height / width  # of the box in pixels -> of the fractions below
        crop_width = np.minimum(np.sqrt(area * ratio), 1)
        crop_height = np.minimum(np.sqrt(area / ratio), 1)
        top = uniform(states, self.STREAM + 3) * (1 - crop_height)
        left = uniform(states, self.STREAM + 4) * (1 - crop_width)
        return geometry.crop_matrix(*map(_tensor, (top, left, crop_height, crop_width)))


@dataclass(frozen=True)
class Flip:
    """Horizontal flip; how often is the policy's probability."""

    STREAM: ClassVar[int] = 0x200

    def matrices(self, states: np.ndarray, height: int, width: int) -> Tensor:
        return geometry.flip_matrix(torch.ones(len(states), dtype=torch.bool))


@dataclass(frozen=True)
class Rotation:
    """Rotation about the view's centre, uniform in +-degrees."""

    STREAM: ClassVar[int] = 0x300
    degrees: float = 15.0

    def matrices(self, states: np.ndarray, height: int, width: int) -> Tensor:
        angle = torch.from_numpy(_between(states, self.STREAM + 1, -self.degrees, self.degrees)) * (math.pi / 180)
        return geometry.rotation_matrix(angle, width / height)


@dataclass(frozen=True)
class Translation:
    """Shift in both directions, uniform in +-shift (a fraction of the view's sides)."""

    STREAM: ClassVar[int] = 0x400
    shift: float = 0.1

    def matrices(self, states: np.ndarray, height: int, width: int) -> Tensor:
        right = _between(states, self.STREAM + 1, -self.shift, self.shift)
        down = _between(states, self.STREAM + 2, -self.shift, self.shift)
        return geometry.translation_matrix(torch.from_numpy(right), torch.from_numpy(down))


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast and saturation factors in 1 +- strength and a hue shift in +-hue, uniform.

    The four come in an order drawn for each sample.
    """

    STREAM: ClassVar[int] = 0x500
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def changes(self, states: np.ndarray, rows: np.ndarray, height: int, width: int) -> list[Change]:
        steps = (
            (colour.adjust_brightness, 1, self.brightness),
            (colour.adjust_contrast, 1, self.contrast),
            (colour.adjust_saturation, 1, self.saturation),
            (colour.adjust_hue, 0, self.hue),
        )
        # The order of four random numbers is a random order.
        numbers = range(len(steps))
        order = np.argsort([uniform(states[rows], self.STREAM + 10 + i) for i in numbers], axis=0)  # (4, n)
        changes = []
        for place in numbers:
            for number, (adjust, centre, strength) in enumerate(steps):
                now = rows[order[place] == number]
                if strength and len(now):
                    amounts = _between(states[now], self.STREAM + 1 + number, centre - strength, centre + strength)
                    changes.append(Change(adjust, now, amounts))
        return changes


@dataclass(frozen=True)
class Grey:
    """Luma in all three channels."""

    STREAM: ClassVar[int] = 0x600

    def changes(self, states: np.ndarray, rows: np.ndarray, height: int, width: int) -> list[Change]:
        return [Change(_grey, rows, np.zeros(len(rows), np.float32))]


@dataclass(frozen=True)
class Blur:
    """Gaussian blur, sigma uniform in `sigma` pixels of a 224-pixel image and in proportion for others.

    Images of 64 pixels or less stay as they are: SimCLR leaves blur out on CIFAR-10 (Chen et al. 2020, B.9).
    """

    STREAM: ClassVar[int] = 0x700
    sigma: tuple[float, float] = (0.1, 2.0)

    def changes(self, states: np.ndarray, rows: np.ndarray, height: int, width: int) -> list[Change]:
        side = min(height, width)
        if side <= 64:
            return []
        sigma = _between(states[rows], self.STREAM + 1, *self.sigma) * np.float32(side / 224)
        radius = math.ceil(3 * self.sigma[1] * side / 224)  # beyond 3 sigma a Gaussian has 0.3 % of its weight
        return [Change(partial(colour.gaussian_blur, radius=radius), rows, sigma)]


def change(x: Tensor, changes: Sequence[Change]) -> Tensor:
    """Do all changes to float images (N, 3, H, W) in 0..1, in their order; in place where one is of some only."""
    return _changed(x, changes, to_device(_arrays(changes), x.device))


def _arrays(changes: Sequence[Change]) -> list[np.ndarray]:
    return [array for change in changes for array in (change.rows, change.amounts)]


def _changed(x: Tensor, changes: Sequence[Change], sent: Sequence[Tensor]) -> Tensor:
    """`change`, with what `_arrays` gave on x's device."""
    for made, rows, amounts in zip(changes, sent[::2], sent[1::2], strict=True):
        if len(rows) == len(x):
            x = made.adjust(x, amounts)
        elif len(rows):
            x.index_copy_(0, rows, made.adjust(x.index_select(0, rows), amounts).contiguous())
    return x


def _grey(x: Tensor, amounts: Tensor) -> Tensor:
    return colour.to_grey(x).repeat(1, 3, 1, 1)


def _between(states: np.ndarray, word: int, low: float, high: float) -> np.ndarray:
    return (low + (high - low) * uniform(states, word).astype(float)).astype(np.float32)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _to_float(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 in 0..255, not {images.dtype}")
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _standardise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """In place: callers own `x`, and a second copy of the batch would cost more than the arithmetic."""
    for values, move in ((mean, x.sub_), (std, x.div_)):
        move(constant(tuple(values), x.device)[:, None, None])
    return x
