"""Patch-shuffle negatives, made on the device: an image's own cells in another order (Ge et al. 2021, section 3.1).

They keep the local texture and lose the object, like synthesised textures, but show the cells' edges. They cost no
shards and no synthesis.
"""

import numpy as np
import torch
from torch import Tensor

from sacl_train.data.device import to_device
from sacl_train.data.draws import mix, uniform
from texturegen.errors import UserError

SIDE, KEYS = 0x800, 0x10000  # words of `draws`: the cell's side; the first of the cells' places


def shuffle_patches(images: Tensor, states: np.ndarray, sizes: tuple[int, int]) -> Tensor:
    """Permute each image's square cells: uint8 (N, C, H, W) -> the same shape on the same device.

    The cells' side is drawn per image from sizes = (smallest, largest), in pixels, both included; whole cells are
    permuted, never into the order they had. A strip at the right or bottom where none fits goes on with the permuted
    ones from the other edge. states: uint64 (N,), from which everything is drawn (`Draws.of`).

    UserError unless 1 <= smallest <= largest and the largest cell fits twice.
    """
    channels, height, width = images.shape[1:]
    low, high = sizes
    if not 1 <= low <= high or (height // max(high, 1)) * (width // max(high, 1)) < 2:
        raise UserError(f"cells of {low} to {high} px cannot be shuffled in images of {width}x{height} px")
    sides = low + np.floor(uniform(states, SIDE) * (high - low + 1)).astype(np.int64)  # (N,)
    columns = width // sides
    cells = columns * (height // sides)
    keys = mix(states[:, None], KEYS + np.arange(cells.max()))  # (N, most cells)
    keys[np.arange(cells.max()) >= cells[:, None]] = np.iinfo(np.uint64).max  # cells that this image has not: last
    order = np.argsort(keys, axis=1, kind="stable")
    same = (order == np.arange(cells.max())).all(axis=1)  # those it has not are in their places
    order[same, :2] = order[same, 1::-1]

    shown, *of_images = to_device([order, sides, columns, cells], images.device)
    side, across, number = (values[:, None] for values in of_images)
    rows, places = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    row_cell = (rows // side) % (number // across)  # (N, H)
    column_cell = (places // side) % across  # (N, W)
    cell = row_cell[:, :, None] * across[:, :, None] + column_cell[:, None, :]  # (N, H, W)
    source = shown.gather(1, cell.flatten(1)).view_as(cell)
    y = source // across[:, :, None] * side[:, :, None] + (rows % side)[:, :, None]
    x = source % across[:, :, None] * side[:, :, None] + (places % side)[:, None, :]
    index = (y * width + x).flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view(images.shape)
