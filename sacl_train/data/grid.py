"""Grid split and combination encoding (SACL §2.2, eq. 1, 2; Fast-MoCo §3.2)."""

from itertools import combinations

from torch import Tensor

from sacl_train.data.device import constant
from texturegen.errors import UserError


def split_grid(x: Tensor, n: int) -> Tensor:
    """Cut images (N, C, H, W) into n x n cells, without resizing: (n*n*N, C, H/n, W/n).

    Cell-major: all N images' top-left cells first, then the next cell in reading order, so row k*N + i is cell k of
    image i. Raises UserError unless n >= 1 divides both sides.
    """
    images, channels, height, width = x.shape
    check_grid(n, height, width)
    cells = x.reshape(images, channels, n, height // n, n, width // n)  # (N, C, row, H/n, column, W/n)
    return cells.permute(2, 4, 0, 1, 3, 5).reshape(n * n * images, channels, height // n, width // n)


def combine(features: Tensor, n: int, cells: int) -> Tensor:
    """Average the features of every subset of `cells` of the n*n cells (eq. 2).

    features: (n*n*N, C) in `split_grid`'s order. Returns (C(n*n, cells), N, C), subsets in itertools' order.
    """
    by_cell = features.unflatten(0, (n * n, -1))  # (n*n, N, C)
    subsets = constant(tuple(combinations(range(n * n), cells)), features.device)  # (A, cells)
    return by_cell[subsets].mean(dim=1)  # (A, cells, N, C) -> (A, N, C)


def check_grid(n: int, height: int, width: int) -> None:
    """Raise UserError, in one sentence, unless images of height x width pixels split into n x n equal cells."""
    if n < 1:
        raise UserError(f"the grid needs at least one cell a side, not {n}")
    if min(height, width) < n:
        raise UserError(f"images of {height}x{width} pixels are smaller than the {n}x{n} grid")
    if height % n or width % n:
        raise UserError(
            f"images of {height}x{width} pixels do not split into a {n}x{n} grid of equal cells: "
            f"both sides must be multiples of {n}"
        )
