"""Quarter turns of images, the shifts that CSI works best with (Tack et al. 2020, section 3)."""

import torch
from torch import Tensor

from texturegen.errors import UserError

TURNS = 3  # quarter turns of an image besides the image itself


def quarter_turns(images: Tensor) -> Tensor:
    """Return images turned counterclockwise by 90, 180 and 270 degrees.

    Parameters
    ----------
    images : Tensor (N, C, S, S)

    Returns
    -------
    Tensor (N, 3, C, S, S)

    Raises
    ------
    UserError
        If the images are not square.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise UserError(
            f"rotations need square images, and these have {width}x{height} px; build the shards with --size, or use "
            "another texture_source"
        )
    return torch.stack([torch.rot90(images, turns, (2, 3)) for turns in range(1, 1 + TURNS)], dim=1)
