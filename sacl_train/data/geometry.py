"""Geometric augmentation as matrices, so that an image is resampled only once.

A matrix maps a point of the view to its source point in the image, both in the coordinates of `grid_sample`:
(x, y, 1), with -1 and 1 at the outer edges of the outermost pixels. A @ B applies A to the image, then B to the result.
All arguments are per sample, float (N,); all results are (N, 3, 3).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_matrix(top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Show a box of the image, resized to the whole view; all arguments are fractions of the image's sides, 0 to 1."""
    zero = torch.zeros_like(top)
    centre_x, centre_y = 2 * left + width - 1, 2 * top + height - 1
    return _affine(width, zero, centre_x, zero, height, centre_y)


def flip_matrix(flip: Tensor) -> Tensor:
    """Mirror images horizontally where `flip`, bool (N,), is True."""
    mirror = torch.where(flip, -1.0, 1.0)
    zero, one = torch.zeros_like(mirror), torch.ones_like(mirror)
    return _affine(mirror, zero, zero, zero, one, zero)


def rotation_matrix(angle: Tensor, aspect: float) -> Tensor:
    """Rotate the content counter-clockwise about the centre by `angle` radians; `aspect` is width / height."""
    zero, cos, sin = torch.zeros_like(angle), angle.cos(), angle.sin()
    return _affine(cos, -sin / aspect, zero, sin * aspect, cos, zero)


def translation_matrix(right: Tensor, down: Tensor) -> Tensor:
    """Shift the content right and down, by fractions of the view's width and height."""
    zero, one = torch.zeros_like(right), torch.ones_like(right)
    return _affine(one, zero, -2 * right, zero, one, -2 * down)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Return first @ second, (N, 3, 3), with rounding that does not depend on N, unlike a library's matrix product."""
    products = first[:, :, :, None] * second[:, None, :, :]  # (N, row, k, column)
    return products[:, :, 0] + products[:, :, 1] + products[:, :, 2]


def warp(images: Tensor, matrices: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Resample float images (N, C, H, W) by matrices (N, 3, 3) to `size`, by default theirs.

    Bilinear, with reflection padding.
    """
    # A crop is hardly ever larger than its view, so antialiasing is not needed.
    grid = _grid(matrices, *(images.shape[-2:] if size is None else size))
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _grid(matrices: Tensor, height: int, width: int) -> Tensor:
    """Return the source point of each pixel of the view, (N, H, W, 2), as F.affine_grid does.

    affine_grid multiplies a matrix for every pixel. Adding a term per row and a term per column is six times as fast on
    a CPU, and the rounding does not depend on the batch.
    """
    across, down = (
        (2 * torch.arange(side, device=matrices.device, dtype=matrices.dtype) + 1) / side - 1  # centres of the pixels
        for side in (width, height)
    )
    rows = matrices[:, :2, :1] * across + matrices[:, :2, 2:]  # (N, 2, W)
    columns = matrices[:, :2, 1:2] * down  # (N, 2, H)
    # x and y are two planes in memory: the sum runs along whole rows, and grid_sample reads them as fast.
    return (rows[:, :, None, :] + columns[:, :, :, None]).permute(0, 2, 3, 1)


def _affine(xx: Tensor, xy: Tensor, x0: Tensor, yx: Tensor, yy: Tensor, y0: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    return torch.stack((xx, xy, x0, yx, yy, y0, zero, zero, one), dim=1).unflatten(1, (3, 3))  # (N, 3, 3)
