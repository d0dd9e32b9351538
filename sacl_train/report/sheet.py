"""A sheet of training images with their textures and two weak views: the input of the network."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from texturegen.errors import UserError
from texturegen.shards import Shards
from texturegen.storage.atomic import write_atomically
from texturegen.storage.image import encode_png

ROWS, COLUMNS = 8, 3  # of images on the sheet
GAP, MIN_SIDE = 4, 64  # pixels: gap between images; smaller images are enlarged to at least this side


def draw_views(path: Path, shards: Shards, weak: WeakAugment) -> None:
    """Write a PNG of up to 24 images, evenly spaced over the set: each with its first texture and two weak views.

    Damaged samples are skipped.

    Parameters
    ----------
    path : Path
        The file.
    shards : Shards
        The training set.
    weak : WeakAugment
        The augmentation.
    """
    picked = np.unique(np.linspace(0, len(shards) - 1, min(ROWS * COLUMNS, len(shards))).astype(int))
    samples, readable = [], []
    for i in picked.tolist():
        with suppress(UserError):  # damaged samples are reported during training
            sample = shards[i]
            assert sample.image.size + sample.textures.size  # decodes both
            samples.append(sample)
            readable.append(i)
    if not samples:
        return
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    draws = Draws(0, 0, torch.tensor(readable))
    mean, std = (torch.tensor(values)[:, None, None] for values in (weak.mean, weak.std))
    columns = [images]
    if shards.textures_per_image:
        columns.append(torch.from_numpy(np.stack([s.textures[0] for s in samples])).permute(0, 3, 1, 2))
    for view in range(2):
        columns.append(((weak.view(images, draws, view) * std + mean).clamp(0, 1) * 255).round().byte())
    cells = torch.stack(columns, 1)  # (N, columns, 3, H, W)
    factor = max(1, -(-MIN_SIDE // cells.shape[-1]))
    cells = cells.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    cells = torch.nn.functional.pad(cells, (0, GAP, 0, GAP), value=255)
    groups = [torch.cat(list(group), -1) for group in cells]
    groups = [torch.nn.functional.pad(group, (0, 4 * GAP), value=255) for group in groups]
    groups += [torch.full_like(groups[0], 255)] * (-len(groups) % COLUMNS)
    rows = [torch.cat(groups[i : i + COLUMNS], -1) for i in range(0, len(groups), COLUMNS)]
    write_atomically(path, encode_png(torch.cat(rows, -2).permute(1, 2, 0).contiguous().numpy()))
