"""Weak augmentation of a whole batch on its device, from uint8 images to normalised views (SACL §2.1, §3.2).

"Chosen at random from a search space of common augmentations": a policy is a list of operations, each with a
probability. The geometric operations of a view are composed into one matrix, and the image is resampled once.

The parameters of a sample are hashed from (seed, epoch, sample, view), so they are the same in any batch, in any
process and on every device. Every operation is computed for the whole batch, and `torch.where` selects the samples that
it applies to: shapes do not depend on what is drawn and the host never waits for the device, so that a whole training
step can be compiled, and captured in a CUDA graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sacl_train.data import geometry
from sacl_train.data.device import constant
from sacl_train.data.draws import Draws, states_of, uniform
from sacl_train.data.operations import (
    Blur,
    ColourJitter,
    ColourOp,
    Crop,
    Flip,
    GeometricOp,
    Grey,
    Rotation,
    Solarise,
    Translation,
)
from texturegen.errors import UserError, nearest

CHUNK = 128 * 32 * 32  # pixels per image plane that a CPU processes at once


@dataclass(frozen=True)
class Policy:
    """Operations in order, each with its probability of being applied to a sample.

    Attributes
    ----------
    geometry, colour : tuple of (operation, probability)
        The geometry comes first.
    second : Policy or None
        Policy of the second view of each image; None: the same.
    """

    geometry: tuple[tuple[GeometricOp, float], ...] = ()
    colour: tuple[tuple[ColourOp, float], ...] = ()
    second: "Policy | None" = None


class ViewOf(NamedTuple):
    """A view that `WeakAugment.together` is to make, of K images of each of N samples.

    Attributes
    ----------
    images : Tensor, uint8 (N*K, 3, H, W)
        The K images of a sample follow each other.
    purposes : tuple of int
        Purposes of the K images' random numbers; see `Draws.of`.
    geometry : int or None
        Purpose that the geometry of all K is drawn from, to share it with another view; None: their own purposes.
    number : int
        1 for the second view of an image, whose policy may differ.
    """

    images: Tensor
    purposes: tuple[int, ...]
    geometry: int | None = None
    number: int = 0


def make_policy(
    name: str,
    crop_scale: tuple[float, float] | None = None,
    degrees: float = 15.0,
    shift: float = 0.1,
    jitter: tuple[float, float, float, float] | None = None,
    grey: float = 0.2,
) -> Policy:
    """Return an augmentation policy.

    Parameters
    ----------
    name : str
        "geometric": random resized crop, horizontal flip (p = 0.5), rotation and translation; SACL's weak augmentation.
        "mocov2": crop, flip, colour jitter (p = 0.8), grey, blur (p = 0.5); Chen et al. 2020, for the baselines.
        "simclr": the same with SimCLR's crops and jitter (Chen et al. 2020, appendix A; half the jitter for CIFAR).
        "byol": the two views of an image differ (Grill et al. 2020, table 6): the first is always blurred, the second
        rarely (p = 0.1), and sometimes solarised (p = 0.2).
        "colour-geometric": geometric, then mocov2's colour jitter and grey. "none": normalisation only.
    crop_scale : tuple of float or None
        Smallest and largest area of the crop, as a fraction of the image; None: the policy's own.
    degrees : float
        Maximum rotation in either direction, in degrees.
    shift : float
        Maximum translation along each axis, as a fraction of the view's side.
    jitter : tuple of float or None
        Strengths of brightness, contrast and saturation, 0 to 1, and the maximum shift of the hue, 0 to 0.5; None: the
        policy's own.
    grey : float
        Probability of greyscale.

    Raises
    ------
    UserError
        If the name is unknown.
    """
    own_scale, own_jitter = published_strengths(name)
    crop_flip = ((Crop(crop_scale or own_scale), 1.0), (Flip(), 0.5))
    all_geometry = (*crop_flip, (Rotation(degrees), 1.0), (Translation(shift), 1.0))
    jitter_grey = ((ColourJitter(*(jitter or own_jitter)), 0.8), (Grey(), grey))
    blurred = Policy(crop_flip, (*jitter_grey, (Blur(), 0.5)))
    solarised = Policy(crop_flip, (*jitter_grey, (Blur(), 0.1), (Solarise(), 0.2)))
    policies = {
        "geometric": Policy(all_geometry),
        "mocov2": blurred,
        "simclr": blurred,
        "byol": Policy(crop_flip, (*jitter_grey, (Blur(), 1.0)), second=solarised),
        "colour-geometric": Policy(all_geometry, jitter_grey),
        "none": Policy(),
    }
    if name not in policies:
        raise UserError(f"unknown weak policy '{name}'{nearest(name, policies)}; known: {', '.join(policies)}")
    return policies[name]


def published_strengths(name: str) -> tuple[tuple[float, float], tuple[float, float, float, float]]:
    """Return the `crop_scale` and the `jitter` of a policy's paper, arguments of `make_policy`."""
    published = {"simclr": ((0.08, 1.0), (0.8, 0.8, 0.8, 0.2)), "byol": ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1))}
    return published.get(name, ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1)))


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
    size : tuple of int or None
        Height and width of the views in pixels; None: the images'.

    Examples
    --------
    >>> weak = WeakAugment("geometric", mean=(0.5,) * 3, std=(0.25,) * 3)
    >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> weak(images, torch.tensor([1, 2])).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        policy: Policy | str,
        mean: Sequence[float],
        std: Sequence[float],
        channels_last: bool = False,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self.mean = mean
        self.std = std
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.size = size

    def view(self, images: Tensor, draws: Draws, number: int) -> Tensor:
        """Return view `number`, 0 or 1, of each image, with the random numbers and the policy of that view."""
        return self(images, draws.of(number), number=number)

    def together(self, asked: Sequence[ViewOf], draws: Draws) -> list[Tensor]:
        """Return several views, each as `forward` makes it.

        A pass is some hundred small operations whatever the number of images, so those with the same policy share one.

        Parameters
        ----------
        asked : sequence of ViewOf
            Images of one size, of the samples of `draws`.
        draws : Draws
            The random numbers of the batch's N samples.

        Returns
        -------
        list of Tensor, float32 (N*K, 3, H, W), or of the given size
        """
        passes: dict[int, list[int]] = {}  # number of the view, if its policy differs -> places in `asked`
        for place, view in enumerate(asked):
            number = 0 if self._policy(view.number) is self.policy else view.number
            passes.setdefault(number, []).append(place)
        made: dict[int, Tensor] = {}  # place in `asked` -> views
        for number, places in passes.items():
            chosen = [asked[place] for place in places]
            states = self._states(draws.samples, draws.start, tuple(view.purposes for view in chosen))
            geometric = None
            if any(view.geometry is not None for view in chosen):
                geometric = self._states(draws.samples, draws.start, tuple(map(_geometry_of, chosen)))
            views = self(torch.cat([view.images for view in chosen]), states, geometric, number)
            made |= dict(zip(places, views.split([len(view.images) for view in chosen]), strict=True))
        return [made[place] for place in range(len(asked))]

    def cropping(self, scale: tuple[float, float], size: tuple[int, int]) -> "WeakAugment":
        """Return this augmentation with smaller crops and views (multi-crop; Caron et al. 2020, section 3.3).

        Parameters
        ----------
        scale : tuple of float
            Smallest and largest area of a crop, as a fraction of the image.
        size : tuple of int
            Height and width of the views in pixels.

        Raises
        ------
        UserError
            If the policy does not crop.
        """

        def smaller(policy: Policy) -> Policy:
            if not any(isinstance(op, Crop) for op, _ in policy.geometry):
                raise UserError("crops need a weak policy that crops, and this one does not; set weak, or queries=grid")
            ops = tuple((replace(op, scale=scale) if isinstance(op, Crop) else op, p) for op, p in policy.geometry)
            return replace(policy, geometry=ops, second=policy.second and smaller(policy.second))

        is_channels_last = self.memory_format == torch.channels_last
        return WeakAugment(smaller(self.policy), self.mean, self.std, is_channels_last, size)

    def forward(self, images: Tensor, states: Tensor, geometric: Tensor | None = None, number: int = 0) -> Tensor:
        """Return a view of each image.

        On a CPU, a view depends only on the image and its state, bit for bit, not on the rest of the batch.

        Parameters
        ----------
        images : Tensor, uint8 (N, 3, H, W)
        states : Tensor, int64 (N,)
            Random states: `Draws.of(number of the view)`.
        geometric : Tensor, int64 (N,), or None
            States that the geometry is drawn from, to give two images the same geometry; None: `states`.
        number : int
            1 for the second view of an image, whose policy may differ.

        Returns
        -------
        Tensor, float32 (N, 3, H, W), or of the given size
            Normalised, on the same device.
        """
        geometric = states if geometric is None else geometric
        policy = self._policy(number)
        if images.is_cuda:
            return self._views(policy, images, states, geometric)
        # On a CPU a chunk and its temporaries fit into the processor's cache (benchmarks/augment.py --chunks).
        count = max(1, CHUNK // (images.shape[2] * images.shape[3]))
        chunks = zip(images.split(count), states.split(count), geometric.split(count), strict=True)
        return torch.cat([self._views(policy, *chunk) for chunk in chunks])

    def _policy(self, number: int) -> Policy:
        return self.policy.second if number == 1 and self.policy.second is not None else self.policy

    def compile(self, **options: Any) -> None:
        """Compile the views by torch.compile, with its `options`."""
        self._views = torch.compile(self._views, **options)  # type: ignore[method-assign]
        self._states = torch.compile(self._states, **options)  # type: ignore[method-assign]

    @staticmethod
    def _states(samples: Tensor, start: Tensor, purposes: tuple[tuple[int, ...], ...]) -> Tensor:
        """Return the states of the images of several views, one after the other; a sample's K images are adjacent."""
        states = states_of(samples, start, tuple(purpose for own in purposes for purpose in own))  # (sum of K, N)
        return torch.cat([part.T.flatten() for part in states.split([len(own) for own in purposes])])

    def _views(self, policy: Policy, images: Tensor, states: Tensor, geometric: Tensor) -> Tensor:
        views = _to_float(images)
        if policy.geometry:
            views = geometry.warp(views, _matrices(policy, geometric, *images.shape[-2:]), self.size)
        for (op, probability), (choice, numbers) in zip(policy.colour, _draw(policy.colour, states), strict=True):
            if probability > 0:
                views = _select(choice, probability, op.apply(views, numbers), views)
        return _standardise(views, self.mean, self.std).contiguous(memory_format=self.memory_format)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x / 255 - mean) / std in float32 for images uint8 (N, 3, H, W): the encoder's input in evaluations."""
    return _standardise(_to_float(images), mean, std)


def _matrices(policy: Policy, states: Tensor, height: int, width: int) -> Tensor:
    """Return the composed geometric operations, float32 (N, 3, 3)."""
    identity = torch.eye(3, device=states.device)
    matrices = identity.expand(len(states), 3, 3)
    for (op, probability), (choice, numbers) in zip(policy.geometry, _draw(policy.geometry, states), strict=True):
        drawn = _select(choice, probability, op.matrices(numbers, height, width), identity)
        matrices = geometry.compose(matrices, drawn)
    return matrices


def _draw(ops: Sequence[tuple[GeometricOp | ColourOp, float]], states: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the numbers of each operation, in [0, 1): its choice (N,), and its parameters (K, N).

    A hash is 13 small operations on the device, so the numbers of all operations come from one.
    """
    if not ops:
        return []
    words = [(op.STREAM, *op.WORDS) for op, _ in ops]
    numbers = uniform(states, tuple(word for own in words for word in own))
    return [(part[0], part[1:]) for part in numbers.split([len(own) for own in words])]


def _select(choice: Tensor, probability: float, changed: Tensor, unchanged: Tensor) -> Tensor:
    """Return `changed` (N, ...) for samples whose choice (N,) is below a probability, `unchanged` for the others."""
    if probability >= 1 or changed is unchanged:
        return changed
    chosen = choice < probability
    return torch.where(chosen.view(-1, *[1] * (changed.dim() - 1)), changed, unchanged)


def _geometry_of(view: ViewOf) -> tuple[int, ...]:
    return view.purposes if view.geometry is None else (view.geometry,) * len(view.purposes)


def _to_float(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 in 0..255, not {images.dtype}")
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _standardise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean_of, std_of = (constant(tuple(values), x.device)[:, None, None] for values in (mean, std))
    return (x - mean_of).div_(std_of)
