"""Decoding to uint8 RGB or to an error, and encoding."""

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from texturegen.errors import UserError
from texturegen.storage.image import ENCODINGS, decode_image, decode_member, encode_image

Encode = Callable[..., bytes]


@pytest.mark.parametrize(
    ("mode", "format_", "options"),
    [
        ("RGB", "PNG", {}),
        ("L", "PNG", {}),
        ("P", "PNG", {}),
        ("1", "PNG", {}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "PPM", {}),
        ("L", "PPM", {}),
        ("P", "GIF", {}),
        ("RGB", "WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_equal_pillow(encode: Encode, mode: str, format_: str, options: dict) -> None:
    data = encode(mode, format_, **options)
    image = decode_image(data)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, np.array(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_close_to_the_photograph(encode: Encode, photo: np.ndarray, mode: str, options: dict) -> None:
    expected = np.array(Image.fromarray(photo).convert("L").convert("RGB")) if mode == "L" else photo
    image = decode_image(encode(mode, "JPEG", quality=95, **options))
    assert image.shape == photo.shape
    assert np.abs(image.astype(int) - expected).mean() < 3


def test_16_bits_keep_their_upper_8(photo: np.ndarray) -> None:
    deep = photo[..., ::-1].astype(np.uint16) * 256 + 100
    for extension in (".png", ".tif"):
        image = decode_image(cv2.imencode(extension, deep)[1].tobytes())
        assert np.abs(image.astype(int) - photo).max() <= 1
    grey = decode_image(cv2.imencode(".png", deep[..., 0])[1].tobytes())
    assert np.abs(grey.astype(int) - photo[..., 2:]).max() <= 1


def test_alpha_is_dropped(photo: np.ndarray) -> None:
    transparent = np.dstack([photo, np.zeros(photo.shape[:2], np.uint8)])
    stream = io.BytesIO()
    Image.fromarray(transparent).save(stream, "PNG")
    np.testing.assert_array_equal(decode_image(stream.getvalue()), photo)


def test_the_first_frame_of_an_animation_is_decoded(photo: np.ndarray) -> None:
    first, second = (Image.fromarray(image).convert("P") for image in (photo, 255 - photo))
    stream = io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(stream.getvalue())).n_frames == 2
    np.testing.assert_array_equal(decode_image(stream.getvalue()), np.array(first.convert("RGB")))


def test_the_exif_orientation_is_applied(encode: Encode, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    image = decode_image(encode("RGB", "JPEG", quality=95, exif=exif))
    assert np.abs(image.astype(int) - np.rot90(photo, -1)).mean() < 3


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.95])
def test_a_truncated_file_is_an_error(
    encode: Encode, format_: str, keep: float, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encode("P" if format_ == "GIF" else "RGB", format_)
    with pytest.raises(UserError, match=r"truncated|damaged"):
        decode_image(data[: int(len(data) * keep)])
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_without_its_last_bytes_or_with_zeros_for_its_end_is_an_error(encode: Encode) -> None:
    for options in ({}, {"progressive": True}):
        data = encode("RGB", "JPEG", **options)
        half = len(data) // 2
        for damaged in (data[:-2], data[:-20], data[:half] + bytes(half)):
            with pytest.raises(UserError, match="the JPEG file is truncated"):
                decode_image(damaged)
    assert decode_image(data + b"trailing bytes of a camera").shape == (300, 451, 3)


@pytest.mark.parametrize("data", [b"just a text\n" * 50, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    with pytest.raises(UserError, match="not an image of a known format"):
        decode_image(data)


def test_an_empty_file_is_an_error() -> None:
    with pytest.raises(UserError, match="the file is empty"):
        decode_image(b"")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_too_many_pixels_are_refused_before_decoding(side: int) -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(UserError, match="more than the limit of 89 million pixels"):
        decode_image(png)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(300, 451), (1, 1), (5, 64)])
def test_encoding_and_decoding(photo: np.ndarray, encoding: str, shape: tuple[int, int]) -> None:
    picture = np.ascontiguousarray(photo[: shape[0], : shape[1]])
    data = encode_image(picture, encoding)
    assert data == encode_image(picture.copy(), encoding)
    assert Image.open(io.BytesIO(data)).format == encoding.upper()
    image = decode_member(data)
    if encoding == "jpeg":
        assert np.abs(image.astype(int) - picture).mean() < 3
        assert Image.open(io.BytesIO(data)).layer[0][1:3] == (1, 1)  # 4:4:4
    else:
        np.testing.assert_array_equal(image, picture)
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))), picture)


def test_lossless_encodings_keep_every_pixel() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (33, 65, 3), dtype=np.uint8)
    for picture in (noise, np.full((32, 32, 3), (255, 0, 3), np.uint8)):
        for encoding in ("png", "webp"):
            np.testing.assert_array_equal(decode_image(encode_image(picture, encoding)), picture)


def test_too_many_pixels_are_refused_in_every_format(encode: Encode) -> None:
    jpeg, webp = bytearray(encode("RGB", "JPEG")), bytearray(encode("RGB", "WEBP"))
    lossless = bytearray(encode("RGB", "WEBP", lossless=True))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    assert webp[12:16] == b"VP8 "
    webp[26:30] = struct.pack("<HH", 16_000, 16_000)
    assert lossless[12:16] == b"VP8L"
    lossless[21:25] = (15_999 | 15_999 << 14).to_bytes(4, "little")
    for data in (jpeg, webp, lossless):
        with pytest.raises(UserError, match="more than the limit of 89 million pixels"):
            decode_image(bytes(data))


@pytest.mark.parametrize("format_", ["BMP", "TIFF", "GIF", "PPM"])
def test_members_of_shards_have_few_formats(encode: Encode, format_: str) -> None:
    data = encode("P" if format_ == "GIF" else "RGB", format_)
    assert decode_image(data).shape == (300, 451, 3)
    with pytest.raises(UserError, match="not a PNG, JPEG or WebP"):
        decode_member(data)


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp"])
def test_a_lack_of_memory_is_not_reported_as_damage(monkeypatch: pytest.MonkeyPatch, extension: str) -> None:
    data = cv2.imencode(extension, np.zeros((8, 9, 3), np.uint8))[1].tobytes()
    monkeypatch.setattr("texturegen.storage.image.cv2.imdecode", lambda *arguments: None)
    with pytest.raises(UserError, match="damaged"):
        decode_image(data)

    def allocate(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("texturegen.storage.image.np.empty", allocate)
    with pytest.raises(MemoryError, match="an image of 9x8 pixels"):
        decode_image(data)


def test_a_lack_of_memory_in_pillow_is_not_reported_as_damage(monkeypatch: pytest.MonkeyPatch, encode: Encode) -> None:
    def convert(image: Image.Image, mode: str) -> None:
        raise MemoryError

    data = encode("RGB", "BMP")
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(MemoryError, match="an image of 451x300 pixels"):
        decode_image(data)
