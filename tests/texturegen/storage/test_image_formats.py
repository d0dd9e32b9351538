"""Every accepted format, mode, depth and orientation equals Pillow's conversion; damaged metadata changes nothing."""

import io
import os
import random
import struct
import zlib

import cv2
import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from texturegen.errors import UserError
from texturegen.storage.image import decode_image, decode_member, original_extension
from texturegen.storage.image_header import PNG_START, kind_of

# Pillow, read for comparison, warns of damaged metadata.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MUTATIONS = int(os.environ.get("TEXTUREGEN_IMAGE_MUTATIONS", "300"))  # of one run; CI takes the default

Y, X = np.mgrid[:40, :56]
RGBA = np.stack([X * 4, Y * 6, X * Y % 256, (X + Y) * 2], -1).astype(np.uint8)
DEEP = (RGBA[..., 0].astype(np.uint16) << 8) + RGBA[..., 1]

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("L", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
    "PPM": ("1", "L", "RGB"),
}


def write(mode: str, format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture = Image.fromarray(RGBA)
    (picture if mode in ("RGBA", "LA") else picture.convert("RGB")).convert(mode).save(stream, format_, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def exif_of(value: int, kind: int = 3, count: int = 1) -> bytes:
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, kind, count, value, 0, 0)


def upright(data: bytes) -> np.ndarray:
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize(("format_", "mode"), [(format_, mode) for format_, modes in MODES.items() for mode in modes])
def test_each_format_and_mode_equals_pillow(format_: str, mode: str) -> None:
    if (format_, mode) == ("TIFF", "YCbCr") and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read the YCbCr TIFF that it writes")
    data = write(mode, format_)
    np.testing.assert_array_equal(decode_image(data), upright(data))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_compressed_tiff_equals_pillow(mode: str, compression: str) -> None:
    data = write(mode, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode_image(data), upright(data))


@pytest.mark.parametrize("options", [{"lossless": True}, {}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_equals_pillow(mode: str, options: dict) -> None:
    data = write(mode, "WEBP", **options)
    np.testing.assert_array_equal(decode_image(data), upright(data))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("has_alpha", [False, True])
@pytest.mark.parametrize(("colour", "bits"), [(0, 1), (0, 2), (0, 4), (0, 8), (3, 1), (3, 2), (3, 4), (3, 8), (2, 8)])
def test_png_of_each_depth_equals_pillow(colour: int, bits: int, has_alpha: bool, interlaced: bool) -> None:
    # A single row of eight pixels, so that Adam7 passes are short enough to write by hand.
    samples = 3 if colour == 2 else 1
    row = random.Random(bits).randbytes(8 * bits * samples // 8)
    raw = b"\0" + row
    if interlaced:
        values = np.frombuffer(row, np.uint8)
        units = np.unpackbits(values).reshape(8, -1)
        passes = [[0], [4], [], [2, 6], [], [1, 3, 5, 7]]
        raw = b"".join(b"\0" + np.packbits(units[columns].ravel()).tobytes() for columns in passes if columns)
    header = struct.pack(">IIBBBBB", 8, 1, bits, colour, 0, 0, int(interlaced))
    palette = chunk(b"PLTE", random.Random(1).randbytes(3 << bits)) if colour == 3 else b""
    alpha = chunk(b"tRNS", bytes(6 if colour == 2 else 2)) if has_alpha else b""
    data = (
        PNG_START + chunk(b"IHDR", header) + palette + alpha + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(decode_image(data), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "PPM"])
def test_16_bits_of_grey_keep_their_upper_8(format_: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(DEEP).save(stream, format_)
    np.testing.assert_array_equal(decode_image(stream.getvalue()), np.repeat((DEEP >> 8)[..., None], 3, 2))


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_16_bits_of_colour_equal_pillow(extension: str) -> None:
    data = cv2.imencode(extension, np.dstack([DEEP, DEEP[::-1], DEEP[:, ::-1]]))[1].tobytes()
    np.testing.assert_array_equal(decode_image(data), upright(data))


@pytest.mark.parametrize("maximum", [1, 100, 255, 1000, 65535])
def test_pgm_of_any_maximum_is_scaled(maximum: int) -> None:
    values = np.array([0, maximum // 3, maximum], ">u2" if maximum > 255 else np.uint8)
    image = decode_image(b"P5 3 1 %d\n" % maximum + values.tobytes())
    np.testing.assert_allclose(image[0, :, 0], values / maximum * 255, atol=1)


def test_float_pixels_are_refused() -> None:
    stream = io.BytesIO()
    Image.fromarray(RGBA[..., 0].astype(np.float32)).save(stream, "TIFF")
    with pytest.raises(UserError, match="floating-point"):
        decode_image(stream.getvalue())


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_equals_exif_transpose(format_: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = write("RGB", format_, exif=exif)
    image = decode_image(data)
    np.testing.assert_array_equal(image, upright(data))
    kept = original_extension(data, image)
    assert (kept is not None) == (orientation == 1 and format_ != "TIFF")


@pytest.mark.parametrize(("kind", "count"), [(1, 1), (3, 1), (4, 1), (2, 1), (3, 2), (99, 1)])
def test_an_orientation_of_an_unusual_type_is_read_as_pillow_reads_it(kind: int, count: int) -> None:
    content = b"Exif\0\0" + exif_of(6, kind, count)
    jpeg = write("RGB", "JPEG")
    jpeg = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]
    png = write("RGB", "PNG")
    for data in (
        jpeg,
        png[:33] + chunk(b"eXIf", content[6:]) + png[33:],
        png[:-12] + chunk(b"eXIf", content[6:]) + png[-12:],
    ):
        np.testing.assert_array_equal(decode_image(data), upright(data))
        np.testing.assert_array_equal(decode_member(data), upright(data))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"eXIf", b"garbage!!"),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  10\nzz"),
        chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"pHYs", b"\0\0"),
        chunk(b"tEXt", b"k\0v")[:-1] + b"\0",
        chunk(b"acTL", struct.pack(">II", 1, 0)),
    ],
)
def test_damaged_png_metadata_changes_no_pixel(extra: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    png = write("RGB", "PNG")
    for data in (png[:33] + extra + png[33:], png[:-12] + extra + png[-12:]):
        np.testing.assert_array_equal(decode_image(data), RGBA[..., :3])
        original_extension(data, RGBA[..., :3])
    assert capfd.readouterr() == ("", "")


def test_fill_bytes_do_not_hide_the_size_of_a_jpeg() -> None:
    stream = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(stream, "JPEG")
    data = stream.getvalue()
    fake = b"\xff\xc0\0\x0b\x08" + struct.pack(">HH", 16, 16) + b"\1\1\x11\0"
    segment = bytearray(b"\xff\xe2" + struct.pack(">H", 65_000) + bytes(64_998))
    at = 4 + 0xE000 - 21  # where a reader lands that takes the second FF for the marker
    segment[at : at + len(fake)] = fake
    for decode in (decode_image, decode_member):
        with pytest.raises(UserError, match="more than the limit"):
            decode(b"\xff\xd8\xff" + data[2:20] + bytes(segment) + data[20:])


def mutate(data: bytes, random_: random.Random) -> bytes:
    """Change the metadata of a file: flip, overwrite, cut or insert bytes."""
    changed = bytearray(data)
    for _ in range(random_.randint(1, 3)):
        start, end = random_.choice(metadata_of(data))
        at = random_.randrange(start, end)
        kind = random_.randrange(3)
        if kind == 0:
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            changed[at : at + 4] = random_.randbytes(4)
        else:
            changed[at:at] = random_.randbytes(random_.randint(1, 8))
    return bytes(changed)


def metadata_of(data: bytes) -> list[tuple[int, int]]:
    """Return the ranges of the metadata in a file written by `make_seeds`."""
    at = data.index(b"II*\0") if b"II*\0" in data else data.index(b"MM\0*")
    return [(at - 10, at + 26)]


def make_seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 1, "a camera"
    text = Image.Exif()
    text[0x112] = 6
    return [write("RGB", format_, exif=e) for format_ in ("PNG", "JPEG", "WEBP") for e in (exif, text)]


def test_mutated_metadata_raises_nothing_else_and_changes_no_pixel() -> None:
    random_ = random.Random(0)
    stored = {kind: decode_image(write("RGB", kind.upper())) for kind in ("PNG", "JPEG", "WebP")}
    seeds = [(data, stored[kind_of(data) or ""]) for data in make_seeds()]
    decoded = 0
    for _ in range(MUTATIONS):
        data, pixels = random_.choice(seeds)
        changed = mutate(data, random_)
        try:
            image = decode_image(changed)
        except UserError:
            continue
        decoded += 1
        turns = [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]
        turns += [turned.transpose(1, 0, 2) for turned in turns]
        assert any(np.array_equal(image, turned) for turned in turns)
        np.testing.assert_array_equal(decode_member(changed), image)
        if original_extension(changed, image) is not None:
            np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(changed)).convert("RGB")), image)
        try:
            expected = upright(changed)
        except Exception:  # Pillow refuses what is decoded here
            continue
        np.testing.assert_array_equal(image, expected)
    assert decoded > MUTATIONS // 4
