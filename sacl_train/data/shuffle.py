"""Patch-shuffle negatives, made on the device: the image's own cells in another order (Ge et al. 2021, section 3.1).

Like synthesised textures, they keep the local texture and lose the object, but cell edges are visible. They need no
textures in the shards.
"""

import numpy as np
import torch
from torch import Tensor

from sacl_train.data.device import to_device
from sacl_train.data.draws import mix, uniform
from texturegen.errors import UserError

SIDE, KEYS = 0x800, 0x10000  # words of `draws`: side of the cells; sort key of cell i is KEYS + i


def shuffle_patches(images: Tensor, states: np.ndarray, sizes: tuple[int, int]) -> Tensor:
    """Permute the square cells of each image, never into their original order.

    A strip at the right or bottom edge that is narrower than a cell is filled with the permuted cells of the opposite
    edge.

    Parameters
    ----------
    images : Tensor, uint8 (N, C, H, W)
    states : ndarray, uint64 (N,)
        Random states (`Draws.of`).
    sizes : tuple of int
        Smallest and largest side of the cells in pixels, both included; each image draws its own.

    Returns
    -------
    Tensor, uint8 (N, C, H, W)
        On the same device.

    Raises
    ------
    UserError
        Unless 1 <= smallest <= largest and an image holds at least two of the largest cells.
    """
    channels, height, width = images.shape[1:]
    low, high = sizes
    if not 1 <= low <= high or (height // max(high, 1)) * (width // max(high, 1)) < 2:
        raise UserError(f"cells of {low} to {high} px cannot be shuffled in images of {width}x{height} px")
    sides = low + np.floor(uniform(states, SIDE) * (high - low + 1)).astype(np.int64)  # (N,)
    columns = width // sides
    cells = columns * (height // sides)
    keys = mix(states[:, None], KEYS + np.arange(cells.max()))  # (N, largest number of cells)
    # Images with larger cells have fewer of them; the unused entries get the largest key and stay at the end.
    keys[np.arange(cells.max()) >= cells[:, None]] = np.iinfo(np.uint64).max
    order = np.argsort(keys, axis=1, kind="stable")
    unchanged = (order == np.arange(cells.max())).all(axis=1)
    order[unchanged, :2] = order[unchanged, 1::-1]

    permutation, *per_image = to_device([order, sides, columns, cells], images.device)
    side, across, count = (values[:, None] for values in per_image)  # across: number of columns
    ys, xs = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    row_cell = (ys // side) % (count // across)  # (N, H)
    column_cell = (xs // side) % across  # (N, W)
    cell = row_cell[:, :, None] * across[:, :, None] + column_cell[:, None, :]  # (N, H, W)
    source = permutation.gather(1, cell.flatten(1)).view_as(cell)
    y = source // across[:, :, None] * side[:, :, None] + (ys % side)[:, :, None]
    x = source % across[:, :, None] * side[:, :, None] + (xs % side)[:, None, :]
    index = (y * width + x).flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view(images.shape)
