"""Textures pasted into their images cover the middle and keep the border."""

import torch

from sacl_train.data.draws import Draws
from sacl_train.data.paste import paste_inside


def test_texture_covers_middle_and_image_keeps_border() -> None:
    images = torch.full((30, 3, 32, 48), 200, dtype=torch.uint8)
    textures = torch.stack([torch.full_like(images, 10), torch.full_like(images, 90)], 1)
    states = Draws(0, 0, torch.arange(30)).of(0)
    pasted = paste_inside(images, textures, states)
    assert pasted.dtype == torch.uint8
    assert pasted.shape == textures.shape
    for number, level in enumerate((10, 90)):
        assert (pasted[:, number, :, 14:18, 20:28] == level).all()
        for edge in (pasted[..., 0, :], pasted[..., -1, :], pasted[..., 0], pasted[..., -1]):
            assert (edge == 200).all()
    covered = (pasted[:, 0, 0] == 10).float().mean((1, 2))
    assert covered.min() >= 0.5**2
    assert covered.max() <= 0.8**2
    assert len(covered.unique()) > 10
    plane = pasted[:, 0, 0]
    assert ((plane > 10) & (plane < 200)).flatten(1).any(1).all(), "the box has a soft edge"
    for axis in (1, 2):
        inside = (plane == 10).any(axis)
        before, after = inside.int().argmax(1), inside.flip(1).int().argmax(1)
        assert len((before - after).unique()) > 2, "the box is not always in the middle"
    assert torch.equal(paste_inside(images[7:9], textures[7:9], states[7:9]), pasted[7:9])
