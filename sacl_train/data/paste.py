"""Paste textures into the middle of their images, over the object; the border of the photograph stays.

A fully synthetic negative can be recognised from any of its pixels; here most of the border is real.
"""

import torch
from torch import Tensor

from sacl_train.data.draws import uniform

# Fractions of the image's side.
HALF_SIDE = (0.3, 0.4)  # smallest and largest half side of the box
MAX_OFFSET = 0.05  # distance of the box's centre from the image's
SOFT_EDGE = 0.06  # width of the box's soft edge

WORDS = range(0x900, 0x904)  # words of `draws`: half height and half width of the box, vertical and horizontal offset


def paste_inside(images: Tensor, textures: Tensor, states: Tensor) -> Tensor:
    """Return the images with a texture pasted into a box in the middle.

    Parameters
    ----------
    images : Tensor, uint8 (N, C, H, W)
    textures : Tensor, uint8 (N, P, C, H, W)
        P textures of each image.
    states : Tensor, int64 (N,)
        Random states (`Draws.of`); the box of an image is the same for all its textures.

    Returns
    -------
    Tensor, uint8 (N, P, C, H, W)
    """
    height, width = images.shape[-2:]
    draws = uniform(states, WORDS)[:, :, None]  # (4, N, 1)
    halves = [HALF_SIDE[0] + (HALF_SIDE[1] - HALF_SIDE[0]) * draw for draw in draws[:2]]
    centres = [0.5 + MAX_OFFSET * (2 * draw - 1) for draw in draws[2:]]
    inside = []
    for half, centre, side in zip(halves, centres, (height, width), strict=True):
        coordinate = (torch.arange(side, device=images.device) + 0.5)[None] / side
        inside.append(((half - (coordinate - centre).abs()) / SOFT_EDGE + 0.5).clamp(0, 1))  # (N, side)
    mask = torch.minimum(inside[0][:, :, None], inside[1][:, None, :])[:, None, None]
    return (images[:, None] + mask * (textures.float() - images[:, None])).round().to(torch.uint8)
