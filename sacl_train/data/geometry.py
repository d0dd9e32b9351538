"""Geometric view changes as matrices, composed first and resampled once.

A matrix maps a point of the view to the point of the image that is shown there, both in grid_sample's coordinates:
(x, y, 1) with -1 and 1 at the outer edges of the outermost pixels. So A @ B is: A done to the image, then B to that.
All arguments are per sample, shape (N,), float; all results (N, 3, 3).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_matrix(top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Show the box only, resized to the whole view. All in fractions of the image's sides, 0..1."""
    zero = torch.zeros_like(top)
    centre_x, centre_y = 2 * left + width - 1, 2 * top + height - 1
    return _affine(width, zero, centre_x, zero, height, centre_y)


def flip_matrix(flip: Tensor) -> Tensor:
    """Mirror left and right where `flip` (bool) is true."""
    zero, one = torch.zeros(len(flip)), torch.ones(len(flip))
    return _affine(torch.where(flip, -1.0, 1.0), zero, zero, zero, one, zero)


def rotation_matrix(angle: Tensor, aspect: float) -> Tensor:
    """Turn the content counter-clockwise about the centre by `angle` radians; aspect: width / height in pixels."""
    zero, cos, sin = torch.zeros_like(angle), angle.cos(), angle.sin()
    return _affine(cos, -sin / aspect, zero, sin * aspect, cos, zero)


def translation_matrix(right: Tensor, down: Tensor) -> Tensor:
    """Shift the content, in fractions of the view's width and height."""
    zero, one = torch.zeros_like(right), torch.ones_like(right)
    return _affine(one, zero, -2 * right, zero, one, -2 * down)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """first @ then, (N, 3, 3), every sum in the same order; a library's product rounds by how many there are."""
    products = first[:, :, :, None] * then[:, None, :, :]  # (N, row, k, column)
    return products[:, :, 0] + products[:, :, 1] + products[:, :, 2]


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample float images (N, C, H, W) by matrices (N, 3, 3): bilinear, and mirrored beyond the image's edge."""
    # No antialiasing: a crop is never larger than the view it fills, so nothing here shrinks an image.
    grid = _places(matrices, *images.shape[-2:])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _places(matrices: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel of the view lies in the image: (N, H, W, 2), what F.affine_grid gives.

    That one multiplies a matrix for each pixel; a row's part and a column's part, added, are six times as fast on a CPU
    and round alike in any batch.
    """
    across, down = (
        (2 * torch.arange(side, device=matrices.device, dtype=matrices.dtype) + 1) / side - 1  # of the pixels' centres
        for side in (width, height)
    )
    grid = matrices.new_empty(len(matrices), height, width, 2)
    for axis in (0, 1):
        row = matrices[:, axis, :1] * across + matrices[:, axis, 2:]  # (N, W)
        column = matrices[:, axis, 1:2] * down  # (N, H)
        torch.add(row[:, None, :], column[:, :, None], out=grid[..., axis])
    return grid


def _affine(xx: Tensor, xy: Tensor, x0: Tensor, yx: Tensor, yy: Tensor, y0: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    rows = [torch.stack(row, dim=1) for row in ((xx, xy, x0), (yx, yy, y0), (zero, zero, one))]
    return torch.stack(rows, dim=1)  # (N, 3, 3)
