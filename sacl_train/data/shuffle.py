"""Patch-shuffle negatives, made on the device: the image's own cells in another order (Ge et al. 2021, section 3.1).

Like synthesised textures, they keep the local texture and lose the object, but cell edges are visible. They need no
textures in the shards.
"""

import torch
from torch import Tensor

from sacl_train.data.draws import sort_keys, uniform
from texturegen.errors import UserError

SIDE, KEYS = 0x800, 0x10000  # words of `draws`: side of the cells; sort key of cell i is KEYS + i


def shuffle_patches(images: Tensor, states: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Permute the square cells of each image, never into their original order.

    A strip at the right or bottom edge that is narrower than a cell is filled with the permuted cells of the opposite
    edge.

    Parameters
    ----------
    images : Tensor, uint8 (N, C, H, W)
    states : Tensor, int64 (N,)
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
    side = low + (uniform(states, SIDE) * (high - low + 1)).long()[:, None]  # (N, 1)
    across = width // side  # number of columns
    count = across * (height // side)
    # The number of entries depends on the settings only, not on what is drawn: the smallest cells are the most.
    places = torch.arange((height // low) * (width // low), device=images.device)
    keys = sort_keys(states, range(KEYS, KEYS + len(places)))  # (N, largest number of cells)
    # Images with larger cells have fewer of them; the unused entries get the largest key and stay at the end.
    keys = torch.where(places < count, keys, torch.iinfo(torch.int64).max)
    order = keys.argsort(dim=1, stable=True)
    swapped = torch.cat([order[:, 1:2], order[:, :1], order[:, 2:]], dim=1)
    order = torch.where((order == places).all(dim=1, keepdim=True), swapped, order)

    ys, xs = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    row_cell = (ys // side) % (count // across)  # (N, H)
    column_cell = (xs // side) % across  # (N, W)
    cell = row_cell[:, :, None] * across[:, :, None] + column_cell[:, None, :]  # (N, H, W)
    source = order.gather(1, cell.flatten(1)).view_as(cell)
    y = source // across[:, :, None] * side[:, :, None] + (ys % side)[:, :, None]
    x = source % across[:, :, None] * side[:, :, None] + (xs % side)[:, None, :]
    index = (y * width + x).flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view(images.shape)
