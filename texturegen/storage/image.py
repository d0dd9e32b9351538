"""Decoding and encoding of images, the same for sources and shards.

OpenCV decodes the pixels: benchmarks/shards.py finds it within a few per cent of the fastest decoder for PNG. The size
is read first and checked against MAX_PIXELS, for PNG, JPEG and WebP by this module and for other formats by Pillow.

OpenCV 4.11 and 5.0 reject a truncated JPEG, PNG, WebP, BMP, TIFF or PNM, even if only two bytes are missing. Damage
inside a JPEG whose end is intact goes unnoticed by OpenCV and Pillow alike.
"""

import io
import struct
import warnings
from typing import Any, NoReturn

import cv2
import numpy as np
from PIL import Image

from texturegen.errors import UserError

# A limit, because a small file can decode to more than the memory. Pillow warns from here on too.
MAX_PIXELS = 89_000_000
TOO_LARGE = f"the image has more than the limit of {MAX_PIXELS // 10**6} million pixels"

EXIF_ORIENTATION = 0x0112
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = PNG_START + b"\0\0\0\rIHDR"
PNG_SIZE = struct.Struct(">II").unpack_from

# No others, because Pillow runs external programs for some formats.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# Encodings of shards -> file extension.
ENCODINGS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
# Measured by benchmarks/shards.py. PNG: OpenCV's defaults (level 1, run-length strategy, filter Sub); other levels and
# filters save at most 15 % of the bytes and take 10 to 700 % more time. WebP: a quality above 100 is lossless. JPEG:
# 4:4:4, because textures have much of their structure in colour.
OPTIONS = {
    "png": [],
    "webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
    "jpeg": [
        *(cv2.IMWRITE_JPEG_QUALITY, 95),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ],
}

REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

# OpenCV 5 has moved setLogLevel, which returns the previous level, to cv2.utils.logging.
LOG: Any = getattr(cv2.utils, "logging", cv2)


def decode_image(data: bytes) -> np.ndarray:
    """Decode an image file to RGB.

    The format is recognised by the content. The EXIF orientation is applied, 16-bit channels keep their upper 8 bits,
    grey, palette, 1-bit and CMYK images become RGB, alpha is dropped (as in torchvision's ImageFolder), and of an
    animation the first frame is taken.

    Parameters
    ----------
    data : the file's bytes, in one of FORMATS.

    Returns
    -------
    uint8 (H, W, 3) RGB.

    Raises
    ------
    UserError : the bytes are not a complete image, or it has more than MAX_PIXELS.
    MemoryError : not enough memory for the pixels.
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
    """Decode like `decode_image`, but only the formats that shards hold: PNG, JPEG and WebP."""
    if data[:16] == PNG_HEADER and len(data) >= 24:
        return _decode_png(data)
    if data[:8] != PNG_START and data[:2] != b"\xff\xd8" and (data[:4], data[8:12]) != (b"RIFF", b"WEBP"):
        raise UserError("the bytes are not a PNG, JPEG or WebP image")
    return decode_image(data)


def decode_reduced(data: bytes, short: int) -> tuple[np.ndarray, int]:
    """Decode a JPEG at a reduced resolution, if its short side stays at least `short` pixels.

    The decoder computes the small image from the low frequencies alone; 1/4 takes half the time of the full image.

    Parameters
    ----------
    data : the file's bytes.
    short : minimum of the short side in pixels.

    Returns
    -------
    The image, uint8 (H, W, 3) RGB, and the divisor: 8, 4, 2, or 1 for other formats and small images.

    Raises
    ------
    UserError, MemoryError : as `decode_image`.
    """
    header = _read_header(data)
    if header.format not in ("JPEG", "MPO") or header.width * header.height > MAX_PIXELS:
        return decode_image(data), 1
    for divisor, flag in REDUCED.items():
        if -(-min(header.size) // divisor) >= short:
            image = _decode_quietly(data, flag)
            if image is None:
                break  # decode_image says why, or succeeds
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), divisor
    return decode_image(data), 1


def original_extension(data: bytes) -> str | None:
    """Return the extension under which a shard may hold the bytes unchanged; None if the image must be encoded anew.

    An 8-bit RGB or grey JPEG, PNG or WebP without rotation or animation is kept, because every reader decodes it as
    `decode_image` does. Readers differ on EXIF orientation, 16 bits, palettes, alpha, CMYK and animation.
    """
    header = _read_header(data)
    extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}.get(header.format or "")
    deep = header.format == "PNG" and data[24] != 8  # Pillow calls 16-bit RGB plain RGB
    upright = header.getexif().get(EXIF_ORIENTATION, 1) == 1
    plain = header.mode in ("RGB", "L") and not deep and upright and getattr(header, "n_frames", 1) == 1
    return extension if plain else None


def encode_image(image: np.ndarray, encoding: str = "png") -> bytes:
    """Encode an image.

    Parameters
    ----------
    image : uint8 (H, W, 3) RGB, or (H, W) grey.
    encoding : "png" or "webp", which are lossless, or "jpeg", with quality 95 and 4:4:4 chroma.
    """
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(f".{ENCODINGS[encoding]}", pixels, OPTIONS[encoding])
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape}")
    return data.tobytes()


def encode_png(image: np.ndarray) -> bytes:
    """Encode an image, uint8 (H, W, 3) RGB or (H, W) grey, as PNG."""
    return encode_image(image, "png")


def _decode_png(data: bytes) -> np.ndarray:
    """Decode a PNG without Pillow, whose look at the header takes as long as the decoding of a small image."""
    width, height = PNG_SIZE(data, 16)
    if width * height > MAX_PIXELS:
        raise UserError(TOO_LARGE)
    # Checked here, because libpng prints its own message to stderr. IEND is normally at the end.
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
    """Raise UserError, or MemoryError if Pillow runs out of memory too: OpenCV reports both failures alike."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            np.asarray(image.convert("RGB"))  # allocates as much as OpenCV would
    except MemoryError:
        raise MemoryError(f"an image of {image.width}x{image.height} pixels") from None
    except Exception:  # damaged for Pillow too
        pass
    raise UserError(reason)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) from the header of a WebP; None if this is not one, or is unusual."""
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
    """Return (width, height) from the frame header of a JPEG; None if this is not one, or is unusual."""
    at = 2
    while data[:2] == b"\xff\xd8" and len(data) >= at + 9 and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return (width, height) if width and height else None
        if marker < 0xC0 or marker == 0xDA or length < 2:  # not a segment with a length, or the start of the pixels
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
        except Exception:  # a damaged header can make Pillow raise almost any exception
            raise UserError("the file is not an image of a known format, or its header is damaged") from None


def _decode_gif(header: Image.Image) -> np.ndarray:
    # Pillow, because the OpenCV 4 wheels are built without GIF.
    try:
        return np.array(header.convert("RGB"))
    except Exception:  # any exception, as for the header
        raise UserError("the GIF file is truncated or damaged") from None


def _decode_quietly(data: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    # Silenced, because the caller reports the error itself.
    level = LOG.setLogLevel(0)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        return None
    finally:
        LOG.setLogLevel(level)
