"""Photometric functions against torchvision's, one sample at a time with its own factor."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from sacl_train.data import colour


@pytest.fixture
def images() -> Tensor:
    """Return noise with black, white, grey and pure colours: (4, 3, 9, 11) in 0 to 1."""
    x = torch.rand(4, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    special = [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0.2, 0.7, 0.7)]
    for column, pixel in enumerate(special):
        x[:, :, 0, column] = torch.tensor(pixel, dtype=torch.float32)
    return x


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (colour.adjust_brightness, F.adjust_brightness, [0.0, 0.6, 1.0, 1.4]),
        (colour.adjust_contrast, F.adjust_contrast, [0.0, 0.6, 1.0, 1.4]),
        (colour.adjust_saturation, F.adjust_saturation, [0.0, 0.6, 1.0, 1.4]),
        (colour.adjust_hue, F.adjust_hue, [-0.5, -0.1, 0.0, 0.37]),
    ],
)
def test_adjustment_equals_torchvision(
    images: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], factors: list[float]
) -> None:
    expected = torch.stack([theirs(x, factor) for x, factor in zip(images, factors, strict=True)])
    torch.testing.assert_close(ours(images, torch.tensor(factors)), expected, atol=2e-6, rtol=0)


def test_grey_equals_torchvision(images: Tensor) -> None:
    torch.testing.assert_close(colour.to_grey(images), F.rgb_to_grayscale(images), atol=1e-6, rtol=0)


def test_blur_equals_torchvision(images: Tensor) -> None:
    sigmas = [0.1, 0.5, 1.0, 2.0]
    blurred = colour.gaussian_blur(images, torch.tensor(sigmas), radius=4)
    expected = torch.stack([F.gaussian_blur(x, [9, 9], [s, s]) for x, s in zip(images, sigmas, strict=True)])
    torch.testing.assert_close(blurred, expected, atol=1e-6, rtol=0)
