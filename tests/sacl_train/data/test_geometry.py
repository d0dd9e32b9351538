"""Matrices against torchvision's own geometric functions, on smooth images and away from the edges.

At the edges the two differ on purpose: torchvision fills with black, `warp` mirrors.
"""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from sacl_train.data import geometry

BILINEAR = InterpolationMode.BILINEAR


@pytest.fixture
def smooth() -> Tensor:
    """Return waves of a few periods, (2, 3, 32, 48) in 0 to 1, different along each axis."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 48), indexing="ij")
    waves = [torch.sin(2 * math.pi * (a * x + b * y + c)) for a, b, c in [(1, 2, 0), (2, 0.5, 0.3), (0.3, 1, 0.6)]]
    image = torch.stack(waves) / 2 + 0.5
    return torch.stack([image, image.roll(1, dims=0)])


def full(value: float) -> Tensor:
    return torch.full((2,), value)


def test_identity_changes_nothing(smooth: Tensor) -> None:
    torch.testing.assert_close(geometry.warp(smooth, torch.eye(3).expand(2, 3, 3)), smooth, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("top", "left", "height", "width"), [(0, 0, 32, 48), (4, 10, 20, 12), (12, 0, 10, 40)])
def test_crop(smooth: Tensor, top: int, left: int, height: int, width: int) -> None:
    matrix = geometry.crop_matrix(full(top / 32), full(left / 48), full(height / 32), full(width / 48))
    expected = F.resized_crop(smooth, top, left, height, width, [32, 48], BILINEAR, antialias=False)
    # torchvision's outermost samples repeat the crop's edge; ours see the image beyond it.
    inside = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(geometry.warp(smooth, matrix)[inside], expected[inside], atol=1e-5, rtol=0)


def test_flip_is_per_sample_and_exact(smooth: Tensor) -> None:
    flipped = geometry.warp(smooth, geometry.flip_matrix(torch.tensor([True, False])))
    expected = torch.stack([F.horizontal_flip(smooth[0]), smooth[1]])
    torch.testing.assert_close(flipped, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [-15.0, 7.0, 90.0])
def test_rotation_is_rigid_on_images_that_are_not_square(smooth: Tensor, degrees: float) -> None:
    turned = geometry.warp(smooth, geometry.rotation_matrix(full(math.radians(degrees)), 48 / 32))
    expected = F.rotate(smooth, degrees, BILINEAR)
    inside = (..., slice(6, -6), slice(14, -14))  # what the black corners do not reach
    torch.testing.assert_close(turned[inside], expected[inside], atol=1e-4, rtol=0)


def test_translation(smooth: Tensor) -> None:
    shifted = geometry.warp(smooth, geometry.translation_matrix(full(6 / 48), full(-3 / 32)))
    expected = F.affine(smooth, 0.0, [6, -3], 1.0, [0.0, 0.0], BILINEAR)
    torch.testing.assert_close(shifted[..., :-3, 6:], expected[..., :-3, 6:], atol=1e-4, rtol=0)


def test_composition_applies_left_matrix_first(smooth: Tensor) -> None:
    crop = geometry.crop_matrix(full(8 / 32), full(12 / 48), full(0.5), full(0.5))
    move = geometry.translation_matrix(full(6 / 48), full(0.0))
    cropped_then_moved = geometry.warp(geometry.warp(smooth, crop), move)
    inside = (..., slice(3, -3), slice(10, -3))
    composed = geometry.warp(smooth, geometry.compose(crop, move))
    torch.testing.assert_close(composed[inside], cropped_then_moved[inside], atol=5e-3, rtol=0)
    assert (geometry.warp(smooth, geometry.compose(move, crop))[inside] - cropped_then_moved[inside]).abs().max() > 0.05


def test_edges_are_mirrored() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    shifted = geometry.warp(ramp, geometry.translation_matrix(torch.tensor([0.25]), torch.tensor([0.0])))
    torch.testing.assert_close(shifted[0, 0, 0], torch.tensor([1.0, 0, 0, 1, 2, 3, 4, 5]))
