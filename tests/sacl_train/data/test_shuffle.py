"""Patch-shuffle on the device permutes whole cells, drawn per sample."""

import pytest
import torch

from sacl_train.data.draws import Draws
from sacl_train.data.shuffle import shuffle_patches
from texturegen.errors import UserError


def states(count: int, seed: int = 0) -> torch.Tensor:
    return Draws(seed, 0, torch.arange(count)).of(0)


def numbered(count: int, height: int, width: int) -> torch.Tensor:
    """Return images in which all pixels and channels have different values."""
    plane = torch.arange(height * width).view(1, height, width)
    return torch.stack([plane % 256, plane // 256, plane * 0], dim=1).to(torch.uint8).repeat(count, 1, 1, 1)


def test_cells_of_dividing_side_are_permuted_whole() -> None:
    images = numbered(20, 32, 48)
    shuffled = shuffle_patches(images, states(20), (8, 8))
    assert shuffled.dtype == torch.uint8
    assert shuffled.shape == images.shape

    def cells(x: torch.Tensor) -> torch.Tensor:  # (4 * 6, 3 * 8 * 8)
        return x.view(3, 4, 8, 6, 8).permute(1, 3, 0, 2, 4).reshape(24, -1)

    orders = set()
    for image, result in zip(images, shuffled, strict=True):
        same = (cells(result)[:, None] == cells(image)[None]).all(-1)  # place x source
        assert (same.sum(0) == 1).all()
        assert (same.sum(1) == 1).all()
        orders.add(tuple(same.int().argmax(1).tolist()))
    assert len(orders) == 20
    assert tuple(range(24)) not in orders


def test_permutations_are_uniform() -> None:
    images = numbered(6000, 4, 6)
    first = shuffle_patches(images, states(6000), (2, 2))[:, 0, 0, 0]  # top left pixel tells the cell
    counts = torch.unique(first, return_counts=True)[1]
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


def test_side_is_drawn_from_range_per_image() -> None:
    images = numbered(300, 24, 24)
    shuffled = shuffle_patches(images, states(300), (2, 8))
    runs = []
    for result in shuffled:
        value = result[0].int() + 256 * result[1].int()
        breaks = (value[:, 1:] - value[:, :-1] != 1).any(0).nonzero().flatten() + 1
        runs.append(int(breaks[0]))
    assert min(runs) == 2
    assert set(range(2, 9)) <= set(runs)


def test_permutation_is_never_the_identity() -> None:
    images = numbered(500, 8, 16)
    shuffled = shuffle_patches(images, states(500), (8, 8))
    assert torch.equal(shuffled, torch.cat([images[..., 8:], images[..., :8]], dim=-1))


def test_shuffle_is_independent_of_batch() -> None:
    images, of = numbered(9, 32, 32), states(9)
    together = shuffle_patches(images, of, (3, 9))
    for i in range(9):
        assert torch.equal(shuffle_patches(images[i : i + 1], of[i : i + 1], (3, 9)), together[i : i + 1])


@pytest.mark.parametrize("sizes", [(0, 4), (5, 4), (9, 9), (4, 16)])
def test_impossible_cells_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="cannot be shuffled in images of 16x16"):
        shuffle_patches(numbered(2, 16, 16), states(2), sizes)
