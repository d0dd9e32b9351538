"""What the network sees: images, their textures, and two weak views of each."""

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

ROWS, COLUMNS, GAP, SIDE = 8, 3, 4, 64


def draw_views(path: Path, shards: Shards, weak: WeakAugment) -> None:
    """Write a PNG: for up to 24 images, evenly over the set, the image, its first texture and two weak views."""
    picked = np.unique(np.linspace(0, len(shards) - 1, min(ROWS * COLUMNS, len(shards))).astype(int))
    samples, good = [], []
    for i in picked.tolist():
        with suppress(UserError):  # training counts and names what is damaged
            sample = shards[i]
            assert sample.image.size + sample.textures.size
            samples.append(sample)
            good.append(i)
    if not samples:
        return
    picked = np.array(good)
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    draws = Draws(0, 0, picked)
    mean, std = (torch.tensor(values)[:, None, None] for values in (weak.mean, weak.std))
    columns = [images]
    if shards.textures_per_image:
        columns.append(torch.from_numpy(np.stack([s.textures[0] for s in samples])).permute(0, 3, 1, 2))
    for view in range(2):
        columns.append(((weak(images, draws.of(view)) * std + mean).clamp(0, 1) * 255).round().byte())
    cells = torch.stack(columns, 1)  # (N, columns, 3, H, W)
    factor = max(1, -(-SIDE // cells.shape[-1]))
    cells = cells.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    cells = torch.nn.functional.pad(cells, (0, GAP, 0, GAP), value=255)
    lines = [torch.cat(list(row), -1) for row in cells]
    lines = [torch.nn.functional.pad(line, (0, 4 * GAP), value=255) for line in lines]
    lines += [torch.full_like(lines[0], 255)] * (-len(lines) % COLUMNS)
    rows = [torch.cat(lines[i : i + COLUMNS], -1) for i in range(0, len(lines), COLUMNS)]
    write_atomically(path, encode_png(torch.cat(rows, -2).permute(1, 2, 0).contiguous().numpy()))
