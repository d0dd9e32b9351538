"""The files of `texturegen texture` are encoded like those of shards."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from texturegen.cli.picture import make_texture
from texturegen.storage.image import decode_image, encode_image
from texturegen.texture import synthesize


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg_keeps_colour_at_full_resolution(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    picture, output = photo[100:140, 150:180], tmp_path / f"out{suffix}"
    (tmp_path / "in.png").write_bytes(encode_image(picture))
    make_texture([tmp_path / "in.png"], output, (32, 48), "patch-shuffle", 3, {})
    texture = synthesize([picture], (32, 48), "patch-shuffle", 3).image
    assert output.read_bytes() == encode_image(texture, "jpeg")
    assert [layer[1:3] for layer in Image.open(output).layer] == [(1, 1)] * 3  # 4:4:4


@pytest.mark.parametrize(("suffix", "encoding"), [(".jpg", "jpeg"), (".png", "png"), (".webp", "webp")])
def test_grey_is_written_as_grey(tmp_path: Path, photo: np.ndarray, suffix: str, encoding: str) -> None:
    picture, output = photo[100:140, 150:180, 0].copy(), tmp_path / f"out{suffix}"
    (tmp_path / "in.png").write_bytes(encode_image(picture))
    assert Image.open(tmp_path / "in.png").mode == "L"
    make_texture([tmp_path / "in.png"], output, None, "patch-shuffle", 0, {})
    texture = synthesize([picture], (40, 30), "patch-shuffle").image
    assert output.read_bytes() == encode_image(texture, encoding)
    if encoding != "webp":  # which has no grey
        assert Image.open(output).mode == "L"
    difference = decode_image(output.read_bytes()).astype(int) - texture[..., None]
    assert np.abs(difference).max() <= (20 if encoding == "jpeg" else 0)
