"""Photometric functions against torchvision's, one sample at a time with its own factor."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from sacl_train.data import colour


def scaled(quality: int, images: Tensor, factors: Tensor) -> Tensor:
    return colour.scale(images, torch.full((len(images),), quality), factors)


brightness, contrast, saturation = (
    partial(scaled, quality) for quality in (colour.BRIGHTNESS, colour.CONTRAST, colour.SATURATION)
)


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
        (brightness, F.adjust_brightness, [0.0, 0.6, 1.0, 1.4]),
        (contrast, F.adjust_contrast, [0.0, 0.6, 1.0, 1.4]),
        (saturation, F.adjust_saturation, [0.0, 0.6, 1.0, 1.4]),
        (colour.adjust_hue, F.adjust_hue, [-0.5, -0.1, 0.0, 0.37]),
    ],
)
def test_adjustment_equals_torchvision(
    images: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], factors: list[float]
) -> None:
    expected = torch.stack([theirs(x, factor) for x, factor in zip(images, factors, strict=True)])
    torch.testing.assert_close(ours(images, torch.tensor(factors)), expected, atol=2e-6, rtol=0)


def test_each_image_is_scaled_in_its_own_quality(images: Tensor) -> None:
    factors = torch.tensor([0.6, 0.7, 1.3, 1.0])
    mixed = colour.scale(images, torch.tensor([2, 1, 0, 1]), factors)
    for i, alone in enumerate((saturation, contrast, brightness)):
        assert torch.equal(mixed[i], alone(images, factors)[i])
    assert torch.equal(mixed[3], images[3]), "a factor of 1 changes nothing"


def test_solarise_equals_torchvision(images: Tensor) -> None:
    assert torch.equal(colour.solarise(images), F.solarize(images, 0.5))
    assert torch.equal(colour.solarise(images, 0.7), F.solarize(images, 0.7))


def test_grey_equals_torchvision(images: Tensor) -> None:
    torch.testing.assert_close(colour.to_grey(images), F.rgb_to_grayscale(images), atol=1e-6, rtol=0)


def test_blur_equals_torchvision(images: Tensor) -> None:
    sigmas = [0.1, 0.5, 1.0, 2.0]
    blurred = colour.gaussian_blur(images, torch.tensor(sigmas), radius=4)
    expected = torch.stack([F.gaussian_blur(x, [9, 9], [s, s]) for x, s in zip(images, sigmas, strict=True)])
    torch.testing.assert_close(blurred, expected, atol=1e-6, rtol=0)
