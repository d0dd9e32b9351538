"""Textures inside their images: the object's place is taken, the image's edge stays the photograph's own.

A negative that is synthetic all over can be told by any of its pixels; of this one most of the border is real.
"""

import numpy as np
import torch
from torch import Tensor

from sacl_train.data.device import to_device
from sacl_train.data.draws import uniform

HALF = (0.3, 0.4)  # least and largest half side of the box, of the image's side
AWAY = 0.05  # of the box's centre from the image's, of the side
SOFT = 0.06  # width of the box's soft edge, of the side
WORDS = range(0x900, 0x904)  # of `draws`: half height, half width, centre


def paste_inside(images: Tensor, textures: Tensor, states: np.ndarray) -> Tensor:
    """Images uint8 (N, C, H, W) with a box of theirs showing their textures (N, P, C, H, W): (N, P, C, H, W) uint8.

    The box is about the middle, drawn anew from each of states uint64 (N,), and the same for an image's P textures.
    """
    height, width = images.shape[-2:]
    draws = [draw[:, None] for draw in to_device([uniform(states, word) for word in WORDS], images.device)]
    halves = [HALF[0] + (HALF[1] - HALF[0]) * draw for draw in draws[:2]]
    centres = [0.5 + AWAY * (2 * draw - 1) for draw in draws[2:]]
    inside = []
    for half, centre, side in zip(halves, centres, (height, width), strict=True):
        place = (torch.arange(side, device=images.device) + 0.5)[None] / side
        inside.append(((half - (place - centre).abs()) / SOFT + 0.5).clamp(0, 1))  # (N, side)
    mask = torch.minimum(inside[0][:, :, None], inside[1][:, None, :])[:, None, None]
    return (images[:, None] + mask * (textures.float() - images[:, None])).round().to(torch.uint8)
