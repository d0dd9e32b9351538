"""Encoded bytes to uint8 RGB, or one sentence that says why not; and back. The same for sources and shards.

OpenCV decodes, for by benchmarks/shards.py it is within a few per cent of the fastest for PNG. The dimensions are read
before the pixels: of PNG, JPEG and WebP here, of other formats by Pillow.
Measured with OpenCV 4.11 and 5.0: a JPEG, PNG, WebP, BMP, TIFF or PNM that ends early, were it by two bytes, gives
None and not a half-grey picture. What neither library notices is damage inside a JPEG whose end is intact.
"""

import io
import struct
import warnings
from typing import Any, NoReturn

import cv2
import numpy as np
from PIL import Image

from texturegen.errors import UserError

# Beyond this a small file can fill the memory. It is also where Pillow starts to warn.
MAX_PIXELS = 89_000_000
TOO_LARGE = f"the image has more than the limit of {MAX_PIXELS // 10**6} million pixels"

EXIF_ORIENTATION = 0x0112
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = PNG_START + b"\0\0\0\rIHDR"
PNG_SIZE = struct.Struct(">II").unpack_from

# No others: Pillow knows formats that start outside programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What shards are written in, and the extension of each.
ENCODINGS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
# benchmarks/shards.py measures them. PNG as OpenCV does it by itself (level 1, run lengths, the filter Sub): other
# filters and levels save up to 15 % of the bytes and take 10 to 700 % more time to write. WebP above 100: without loss.
# JPEG 4:4:4: textures have much of their structure in colour.
OPTIONS = {
    "png": [],
    "webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
    "jpeg": [
        *(cv2.IMWRITE_JPEG_QUALITY, 95),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ],
}

REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

# Where OpenCV keeps setLogLevel, which returns the level before: at the top in 4, in a module of its own in 5.
LOG: Any = getattr(cv2.utils, "logging", cv2)


def decode_image(data: bytes) -> np.ndarray:
    """Return uint8 (H, W, 3) RGB, whatever the file held; UserError when it is no whole image.

    The content decides, not a file name. The EXIF orientation is applied. 16 bits per channel keep their upper 8;
    grey, palette, 1-bit and CMYK become RGB; alpha is dropped, as torchvision's ImageFolder does; of an animation the
    first frame is taken.
    """
    if data[:16] == PNG_HEADER and len(data) >= 24:
        return _decode_png(data)
    if (size := _webp_size(data) or _jpeg_size(data)) is not None:
        return _decode_known(data, size)
    header = _read_header(data)
    kind = "JPEG" if header.format == "MPO" else header.format  # MPO: a JPEG with more pictures behind it
    if header.width * header.height > MAX_PIXELS:
        raise UserError(TOO_LARGE)
    if kind == "GIF":
        return _decode_gif(header)
    image = _decode_quietly(data)
    if image is None:
        _refuse(data, f"the {kind} file is truncated, damaged or of a kind that OpenCV cannot decode")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_member(data: bytes) -> np.ndarray:
    """As `decode_image`, but of the types that shards hold, PNG, JPEG and WebP, and no other; the bytes decide."""
    if data[:16] == PNG_HEADER and len(data) >= 24:
        return _decode_png(data)
    if data[:8] != PNG_START and data[:2] != b"\xff\xd8" and (data[:4], data[8:12]) != (b"RIFF", b"WEBP"):
        raise UserError("the bytes are neither a PNG nor a JPEG nor a WebP; not decoded")
    return decode_image(data)


def decode_reduced(data: bytes, short: int) -> tuple[np.ndarray, int]:
    """Decode a JPEG at 1/8, 1/4 or 1/2, the smallest of which the short side still has `short` pixels or more.

    Returns the image, as `decode_image` would, and the divisor: 1 for other formats, and where no reduction fits. The
    decoder then makes the small image straight from the low frequencies: at 1/4, in half the time of the whole one.
    """
    header = _read_header(data)
    if header.format not in ("JPEG", "MPO") or header.width * header.height > MAX_PIXELS:
        return decode_image(data), 1
    for divisor, flag in REDUCED.items():
        if -(-min(header.size) // divisor) >= short:
            image = _decode_quietly(data, flag)
            if image is None:
                break  # decode_image says why, or can
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), divisor
    return decode_image(data), 1


def original_extension(data: bytes) -> str | None:
    """Extension for passing the bytes of a decodable image on as they are; None where they are better encoded anew.

    Kept are 8-bit RGB or grey JPEG, PNG and WebP of one upright frame: every reader shows of them what `decode_image`
    does. Readers differ on EXIF orientation, 16 bits, palettes, alpha, CMYK and animation.
    """
    header = _read_header(data)
    extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}.get(header.format or "")
    deep = header.format == "PNG" and data[24] != 8  # Pillow calls 16-bit RGB plain RGB
    upright = header.getexif().get(EXIF_ORIENTATION, 1) == 1
    plain = header.mode in ("RGB", "L") and not deep and upright and getattr(header, "n_frames", 1) == 1
    return extension if plain else None


def encode_image(image: np.ndarray, encoding: str = "png") -> bytes:
    """Encode uint8 (H, W, 3) RGB as one of ENCODINGS; png and webp are without loss."""
    done, data = cv2.imencode(f".{ENCODINGS[encoding]}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), OPTIONS[encoding])
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape}")
    return data.tobytes()


def encode_png(image: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) RGB as PNG, without loss."""
    return encode_image(image, "png")


def _decode_png(data: bytes) -> np.ndarray:
    """The way of nearly every member of a shard: without Pillow's look at the header, which takes as long again."""
    width, height = PNG_SIZE(data, 16)
    if width * height > MAX_PIXELS:
        raise UserError(TOO_LARGE)
    # OpenCV finds this too, but libpng then writes to stderr by itself. From the end: there it nearly always is.
    if data.rfind(b"IEND") < 0:
        raise UserError("the PNG file is truncated")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        _refuse(data, "the PNG file is damaged")
    return image


def _decode_known(data: bytes, size: tuple[int, int]) -> np.ndarray:
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(TOO_LARGE)
    image = _decode_quietly(data, cv2.IMREAD_COLOR_RGB)
    if image is None:
        kind = "WEBP" if data[:4] == b"RIFF" else "JPEG"
        _refuse(data, f"the {kind} file is truncated, damaged or of a kind that OpenCV cannot decode")
    return image


def _refuse(data: bytes, reason: str) -> NoReturn:
    """Raise UserError, or MemoryError: OpenCV gives the same answer to a damaged image and to a lack of memory."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            np.asarray(image.convert("RGB"))  # as many bytes as OpenCV wanted
    except MemoryError:
        raise MemoryError(f"an image of {image.width}x{image.height} pixels") from None
    except Exception:  # Pillow finds it damaged too
        pass
    raise UserError(reason)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP; None where another must look."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from the frame header of a JPEG; None where another must look."""
    at = 2
    while data[:2] == b"\xff\xd8" and len(data) >= at + 9 and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return (width, height) if width and height else None
        if marker < 0xC0 or marker == 0xDA or length < 2:  # no segment with a length; or the pixels
            return None
        at += 2 + length
    return None


def _read_header(data: bytes) -> Image.Image:
    if not data:
        raise UserError("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise UserError(TOO_LARGE) from None
        except Exception:  # a damaged header makes Pillow raise nearly anything
            raise UserError("the file is not an image of a known format, or is damaged at its start") from None


def _decode_gif(header: Image.Image) -> np.ndarray:
    # By Pillow: the OpenCV 4 wheels are built without GIF.
    try:
        return np.array(header.convert("RGB"))
    except Exception:  # as for the header
        raise UserError("the GIF file is truncated or damaged") from None


def _decode_quietly(data: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    # OpenCV logs to stderr what the caller reports in one sentence.
    level = LOG.setLogLevel(0)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        return None
    finally:
        LOG.setLogLevel(level)
