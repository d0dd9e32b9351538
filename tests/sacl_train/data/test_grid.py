"""Grid split and combinations against slicing loops."""

from itertools import combinations

import numpy as np
import pytest
import torch

from sacl_train.data.grid import combine, split_grid
from texturegen.errors import UserError


@pytest.mark.parametrize(("n", "height", "width"), [(1, 5, 7), (2, 8, 6), (3, 9, 12), (4, 4, 4)])
def test_split_grid_is_cell_major_slices(n: int, height: int, width: int) -> None:
    images = torch.arange(2 * 3 * height * width).reshape(2, 3, height, width)
    cells = split_grid(images, n)
    h, w = height // n, width // n
    expected = [
        images[i, :, row * h : (row + 1) * h, column * w : (column + 1) * w]
        for row in range(n)
        for column in range(n)
        for i in range(2)
    ]
    assert torch.equal(cells, torch.stack(expected))


def test_split_grid_keeps_values_and_layout_of_channels_last_images() -> None:
    images = torch.rand(2, 3, 8, 8)
    cells = split_grid(images.to(memory_format=torch.channels_last), 2)
    assert torch.equal(cells, split_grid(images, 2))
    assert cells.is_contiguous(memory_format=torch.channels_last)
    assert split_grid(images, 2).is_contiguous()


@pytest.mark.parametrize(
    ("shape", "n", "message"),
    [
        ((2, 3, 9, 8), 2, "multiples of 2"),
        ((2, 3, 8, 9), 2, "multiples of 2"),
        ((2, 3, 1, 1), 2, "smaller than the 2x2 grid"),
        ((2, 3, 1, 8), 2, "smaller than the 2x2 grid"),
        ((2, 3, 8, 8), 0, "at least one cell"),
    ],
)
def test_split_grid_refuses(shape: tuple[int, ...], n: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_grid(torch.zeros(shape), n)


@pytest.mark.parametrize(("n", "cells"), [(2, 1), (2, 2), (2, 3), (2, 4), (3, 2)])
def test_combine_averages_every_subset(n: int, cells: int) -> None:
    features = np.random.default_rng(0).normal(size=(n * n * 5, 7))
    expected = [
        [np.mean([features[cell * 5 + image] for cell in subset], axis=0) for image in range(5)]
        for subset in combinations(range(n * n), cells)
    ]
    combined = combine(torch.from_numpy(features), n, cells).numpy()
    assert combined.shape == np.shape(expected)
    np.testing.assert_allclose(combined, expected, rtol=1e-12)


def test_combining_all_cells_of_linear_map_gives_whole_image() -> None:
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    means = split_grid(images, 2).mean(dim=(2, 3))  # an "encoder" that pools
    torch.testing.assert_close(combine(means, 2, 4)[0], images.mean(dim=(2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "cells"), [(2, 2), (3, 2)])
def test_gradient_of_combine_is_deterministic_and_equals_indexing(n: int, cells: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    subsets = torch.tensor(list(combinations(range(n * n), cells)))
    features = torch.randn(n * n * 64, 64).to(dtype).requires_grad_()
    gradient = torch.randn(len(subsets), 64, 64).to(dtype)

    def gradients(threads: int, indexed: bool) -> torch.Tensor:
        torch.set_num_threads(threads)
        by_cell = features.unflatten(0, (n * n, -1))
        combined = by_cell[subsets].mean(dim=1) if indexed else combine(features, n, cells)
        return torch.autograd.grad(combined, features, gradient)[0]

    threads = torch.get_num_threads()
    try:
        expected = gradients(1, indexed=True)  # checkpoints of earlier versions were trained with it
        assert all(torch.equal(gradients(count, indexed=False), expected) for count in (1, 2, 2, 2, 4))
    finally:
        torch.set_num_threads(threads)
