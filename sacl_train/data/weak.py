"""Weak augmentation of a whole batch on its device, from uint8 images to normalised views (SACL §2.1, §3.2).

"Chosen at random from a search space of common augmentations": a policy is a list of operations, each with a
probability. The geometric operations of a view are composed into one matrix, and the image is resampled once. The
parameters of a sample are hashed from (seed, epoch, sample, view) on the CPU, so they are the same in any batch, in any
process and on every device.
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

CHUNK = 128 * 32 * 32  # pixels per image plane that a CPU processes at once


class GeometricOp(Protocol):
    """A geometric operation, which draws a matrix per sample; see `geometry`.

    Attributes
    ----------
    STREAM : int
        First of the operation's words for `draws.uniform`. STREAM itself decides whether the operation is applied to a
        sample, and its parameters use STREAM + 1 onwards, so operations are independent of each other.
    """

    STREAM: ClassVar[int]

    def matrices(self, states: np.ndarray, height: int, width: int) -> Tensor:
        """Return matrices float (N, 3, 3) on the CPU, for states uint64 (N,) and images of height x width pixels."""
        ...


@dataclass(frozen=True)
class Adjustment:
    """A photometric change of selected images of a batch.

    Attributes
    ----------
    adjust : callable
        Maps float images (n, 3, H, W) in 0 to 1 and amounts float32 (n,) to changed images.
    rows : ndarray int64 (n,)
        Rows of the batch to change, ascending.
    amounts : ndarray float32 (n,)
        Strength of the change for each row.
    """

    adjust: Callable[[Tensor, Tensor], Tensor]
    rows: np.ndarray
    amounts: np.ndarray


class ColourOp(Protocol):
    """A photometric operation, which draws changes of the selected rows; STREAM as in `GeometricOp`."""

    STREAM: ClassVar[int]

    def changes(self, states: np.ndarray, rows: np.ndarray, height: int, width: int) -> list[Adjustment]:
        """Return the changes in order, for a batch's states uint64 (N,) and its selected rows, int64 (n,) ascending."""
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


class WeakAugment:
    """Makes one random view of each image.

    Parameters
    ----------
    policy : Policy or str
        A policy, or the name of one; UserError if it is unknown.
    mean, std : sequence of float
        Normalisation per channel, for pixels in 0 to 1.

    Examples
    --------
    >>> weak = WeakAugment("geometric", mean=(0.5,) * 3, std=(0.25,) * 3)
    >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> weak(images, np.array([1, 2], np.uint64)).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(self, policy: Policy | str, mean: Sequence[float], std: Sequence[float]) -> None:
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self.mean = mean
        self.std = std

    def __call__(self, images: Tensor, states: np.ndarray, geometric: np.ndarray | None = None) -> Tensor:
        """Return a view of each image.

        On a CPU, a view depends only on the image and its state, bit for bit, not on the rest of the batch.

        Parameters
        ----------
        images : Tensor, uint8 (N, 3, H, W)
        states : ndarray, uint64 (N,)
            Random states: `Draws.of(number of the view)`.
        geometric : ndarray, uint64 (N,), or None
            States that the geometry is drawn from, to give two images the same geometry; None: `states`.

        Returns
        -------
        Tensor, float32 (N, 3, H, W)
            Normalised, on the same device.
        """
        # On a CPU a chunk and its temporaries fit into the processor's cache (benchmarks/augment.py --chunks).
        count = len(images) if images.is_cuda else max(1, CHUNK // (images.shape[2] * images.shape[3]))
        geometric = states if geometric is None else geometric
        parts = [
            self._views(images[i : i + count], states[i : i + count], geometric[i : i + count])
            for i in range(0, len(images), count)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _views(self, images: Tensor, states: np.ndarray, geometric: np.ndarray) -> Tensor:
        height, width = images.shape[-2:]
        changes: list[Adjustment] = []
        for photometric, probability in self.policy.colour:
            rows = np.flatnonzero(uniform(states, photometric.STREAM) < probability)
            changes += photometric.changes(states, rows, height, width)
        matrices = self._matrices(geometric, height, width)
        # One copy to the device for all random numbers.
        device_matrices, *adjustments = to_device([matrices, *_arrays(changes)], images.device)
        views = _to_float(images)
        if len(matrices):
            views = geometry.warp(views, device_matrices)
        return _standardise(_apply_changes(views, changes, adjustments), self.mean, self.std)

    def _matrices(self, states: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return the composed geometric operations, float32 (N, 3, 3); (0, 3, 3) if the policy has none."""
        matrices = torch.eye(3).expand(len(states) if self.policy.geometry else 0, 3, 3)
        for op, probability in self.policy.geometry:
            chosen = torch.from_numpy(uniform(states, op.STREAM) < probability)
            drawn = op.matrices(states, height, width)
            matrices = geometry.compose(matrices, torch.where(chosen[:, None, None], drawn, torch.eye(3)))
        return matrices.numpy()


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x / 255 - mean) / std in float32 for images uint8 (N, 3, H, W): the encoder's input in evaluations."""
    return _standardise(_to_float(images), mean, std)


@dataclass(frozen=True)
class Crop:
    """Random resized crop: uniform area, log-uniform aspect ratio (Szegedy et al. 2015 §6).

    A side longer than the image's is clipped to it. torchvision redraws instead, which needs a loop over samples.
    """

    STREAM: ClassVar[int] = 0x100
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def matrices(self, states: np.ndarray, height: int, width: int) -> Tensor:
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * uniform(states, self.STREAM + 1).astype(float)
        low, high = np.log(self.ratio)
        ratio = np.exp(low + (high - low) * uniform(states, self.STREAM + 2).astype(float))
        ratio *= height / width  # from the aspect ratio in pixels to that of the fractions below
        crop_width = np.minimum(np.sqrt(area * ratio), 1)
        crop_height = np.minimum(np.sqrt(area / ratio), 1)
        top = uniform(states, self.STREAM + 3) * (1 - crop_height)
        left = uniform(states, self.STREAM + 4) * (1 - crop_width)
        return geometry.crop_matrix(*map(_tensor, (top, left, crop_height, crop_width)))


@dataclass(frozen=True)
class Flip:
    """Horizontal flip; the policy selects the samples."""

    STREAM: ClassVar[int] = 0x200

    def matrices(self, states: np.ndarray, height: int, width: int) -> Tensor:
        return geometry.flip_matrix(torch.ones(len(states), dtype=torch.bool))


@dataclass(frozen=True)
class Rotation:
    """Rotation about the view's centre, uniform in -degrees to degrees."""

    STREAM: ClassVar[int] = 0x300
    degrees: float = 15.0

    def matrices(self, states: np.ndarray, height: int, width: int) -> Tensor:
        angle = torch.from_numpy(_between(states, self.STREAM + 1, -self.degrees, self.degrees)) * (math.pi / 180)
        return geometry.rotation_matrix(angle, width / height)


@dataclass(frozen=True)
class Translation:
    """Translation, uniform in -shift to shift in both directions, as a fraction of the view's sides."""

    STREAM: ClassVar[int] = 0x400
    shift: float = 0.1

    def matrices(self, states: np.ndarray, height: int, width: int) -> Tensor:
        right = _between(states, self.STREAM + 1, -self.shift, self.shift)
        down = _between(states, self.STREAM + 2, -self.shift, self.shift)
        return geometry.translation_matrix(torch.from_numpy(right), torch.from_numpy(down))


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

    def changes(self, states: np.ndarray, rows: np.ndarray, height: int, width: int) -> list[Adjustment]:
        steps = (
            (colour.adjust_brightness, 1, self.brightness),
            (colour.adjust_contrast, 1, self.contrast),
            (colour.adjust_saturation, 1, self.saturation),
            (colour.adjust_hue, 0, self.hue),
        )
        # The argsort of random numbers is a random permutation.
        order = np.argsort([uniform(states[rows], self.STREAM + 10 + i) for i in range(len(steps))], axis=0)  # (4, n)
        changes = []
        for position in range(len(steps)):
            for step, (adjust, centre, strength) in enumerate(steps):
                selected = rows[order[position] == step]
                if strength and len(selected):
                    amounts = _between(states[selected], self.STREAM + 1 + step, centre - strength, centre + strength)
                    changes.append(Adjustment(adjust, selected, amounts))
        return changes


@dataclass(frozen=True)
class Grey:
    """Greyscale: the luma in all three channels."""

    STREAM: ClassVar[int] = 0x600

    def changes(self, states: np.ndarray, rows: np.ndarray, height: int, width: int) -> list[Adjustment]:
        return [Adjustment(_grey, rows, np.zeros(len(rows), np.float32))]


@dataclass(frozen=True)
class Blur:
    """Gaussian blur; the standard deviation is uniform in `sigma`, in pixels at 224 px, and scales with the image.

    Images of up to 64 pixels are not blurred: SimCLR omits blur on CIFAR-10 (Chen et al. 2020, B.9).
    """

    STREAM: ClassVar[int] = 0x700
    sigma: tuple[float, float] = (0.1, 2.0)

    def changes(self, states: np.ndarray, rows: np.ndarray, height: int, width: int) -> list[Adjustment]:
        side = min(height, width)
        if side <= 64:
            return []
        sigma = _between(states[rows], self.STREAM + 1, *self.sigma) * np.float32(side / 224)
        radius = math.ceil(3 * self.sigma[1] * side / 224)  # beyond 3 sigma is only 0.3 % of a Gaussian
        return [Adjustment(partial(colour.gaussian_blur, radius=radius), rows, sigma)]


def change(x: Tensor, changes: Sequence[Adjustment]) -> Tensor:
    """Apply changes in order to float images (N, 3, H, W) in 0 to 1; changes of some rows only are made in place."""
    return _apply_changes(x, changes, to_device(_arrays(changes), x.device))


def _arrays(changes: Sequence[Adjustment]) -> list[np.ndarray]:
    return [array for adjustment in changes for array in (adjustment.rows, adjustment.amounts)]


def _apply_changes(x: Tensor, changes: Sequence[Adjustment], tensors: Sequence[Tensor]) -> Tensor:
    """Apply changes in order; `tensors` are their `_arrays` on the device of x."""
    for adjustment, rows, amounts in zip(changes, tensors[::2], tensors[1::2], strict=True):
        if len(rows) == len(x):
            x = adjustment.adjust(x, amounts)
        elif len(rows):
            x.index_copy_(0, rows, adjustment.adjust(x.index_select(0, rows), amounts).contiguous())
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
    """Normalise in place, because a copy of the batch would cost more than the arithmetic."""
    for values, operation in ((mean, x.sub_), (std, x.div_)):
        operation(constant(tuple(values), x.device)[:, None, None])
    return x
