"""Grid split and combination encoding (SACL §2.2, eq. 1, 2; Fast-MoCo §3.2)."""

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from sacl_train.data.device import constant
from texturegen.errors import UserError


def split_grid(x: Tensor, n: int) -> Tensor:
    """Cut images into n x n cells, without resizing them.

    Parameters
    ----------
    x : Tensor, (N, C, H, W)
        Images, contiguous or channels_last.
    n : int
        Cells along each side.

    Returns
    -------
    Tensor, (n*n*N, C, H/n, W/n)
        Cells in cell-major order: the top-left cells of all N images first, then the next cell in reading order. Row
        k*N + i is cell k of image i. The memory layout is that of the images.

    Raises
    ------
    UserError
        If n is below 1 or does not divide both sides.

    Examples
    --------
    >>> import torch
    >>> split_grid(torch.zeros(8, 3, 32, 32), 2).shape
    torch.Size([32, 3, 16, 16])
    """
    images, channels, height, width = x.shape
    check_grid(n, height, width)
    cells = x.reshape(images, channels, n, height // n, n, width // n)  # (N, C, row, H/n, column, W/n)
    if x.is_contiguous(memory_format=torch.channels_last):
        return cells.permute(2, 4, 0, 3, 5, 1).flatten(0, 2).permute(0, 3, 1, 2)  # in the same layout
    return cells.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)


def combine(features: Tensor, n: int, cells: int) -> Tensor:
    """Average the features of every subset of `cells` of the n*n cells (SACL eq. 2).

    Parameters
    ----------
    features : Tensor, (n*n*N, C)
        Features of cells in the order of `split_grid`.
    n : int
        Cells along each side of an image.
    cells : int
        Cells per subset.

    Returns
    -------
    Tensor, (A, N, C)
        A = binomial(n*n, cells) averages per image, subsets in the order of `itertools.combinations`.
    """
    by_cell = features.unflatten(0, (n * n, -1))  # (n*n, N, C)
    subsets = constant(tuple(combinations(range(n * n), cells)), features.device)  # (A, cells)
    # The gradient of by_cell[subsets] is summed by several threads in an order that varies from call to call, so two
    # identical runs would diverge. F.embedding sums its gradient in a fixed order.
    chosen = F.embedding(subsets, by_cell.flatten(1))  # (A, cells, N*C)
    return chosen.unflatten(2, by_cell.shape[1:]).mean(dim=1)  # (A, cells, N, C) -> (A, N, C)


def check_grid(n: int, height: int, width: int) -> None:
    """Raise UserError unless images of height x width pixels split into n x n equal cells."""
    if n < 1:
        raise UserError(f"the grid needs at least one cell per side, not {n}")
    if min(height, width) < n:
        raise UserError(f"images of {height}x{width} pixels are smaller than the {n}x{n} grid")
    if height % n or width % n:
        raise UserError(
            f"images of {height}x{width} pixels do not split into a {n}x{n} grid of equal cells: "
            f"both sides must be multiples of {n}"
        )
