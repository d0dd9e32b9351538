"""Encoded bytes to uint8 RGB, or one sentence that says why not; and back. The same for sources and shards.

OpenCV decodes; Pillow reads the header first, because it tells format and dimensions without touching the pixels.
Measured with OpenCV 4.11 and 5.0: a JPEG, PNG, WebP, BMP, TIFF or PNM that ends early, were it by two bytes, gives
None and not a half-grey picture. What neither library notices is damage inside a JPEG whose end is intact.
"""

import io
import struct
import warnings
from typing import Any

import cv2
import numpy as np
from PIL import Image

from texturegen.errors import UserError

# Beyond this a small file can fill the memory. It is also where Pillow starts to warn.
MAX_PIXELS = 89_000_000
TOO_LARGE = f"the image has more than the limit of {MAX_PIXELS // 10**6} million pixels"

EXIF_ORIENTATION = 0x0112
PNG_START = b"\x89PNG\r\n\x1a\n"

# No others: Pillow knows formats that start outside programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What shards are written in, and the extension of each.
ENCODINGS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
OPTIONS = {"png": [], "webp": [cv2.IMWRITE_WEBP_QUALITY, 101], "jpeg": [cv2.IMWRITE_JPEG_QUALITY, 95]}

# Where OpenCV keeps setLogLevel, which returns the level before: at the top in 4, in a module of its own in 5.
LOG: Any = getattr(cv2.utils, "logging", cv2)


def decode_image(data: bytes) -> np.ndarray:
    """Return uint8 (H, W, 3) RGB, whatever the file held; UserError when it is no whole image.

    The content decides, not a file name. The EXIF orientation is applied. 16 bits per channel keep their upper 8;
    grey, palette, 1-bit and CMYK become RGB; alpha is dropped, as torchvision's ImageFolder does; of an animation the
    first frame is taken.
    """
    if data[:8] == PNG_START and len(data) >= 24:
        return _decode_png(data)
    header = _read_header(data)
    kind = "JPEG" if header.format == "MPO" else header.format  # MPO: a JPEG with more pictures behind it
    if header.width * header.height > MAX_PIXELS:
        raise UserError(TOO_LARGE)
    if kind == "GIF":
        return _decode_gif(header)
    image = _decode_quietly(data)
    if image is None:
        raise UserError(f"the {kind} file is truncated, damaged or of a kind that OpenCV cannot decode")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


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
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape}")
    return data.tobytes()


def _decode_png(data: bytes) -> np.ndarray:
    """The way of nearly every member of a shard: without Pillow's look at the header, which takes as long again."""
    width, height = struct.unpack(">II", data[16:24])
    if width * height > MAX_PIXELS:
        raise UserError(TOO_LARGE)
    # OpenCV finds this too, but libpng then writes to stderr by itself.
    if b"IEND" not in data:
        raise UserError("the PNG file is truncated")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError("the PNG file is damaged")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


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


def _decode_quietly(data: bytes) -> np.ndarray | None:
    # OpenCV logs to stderr what the caller reports in one sentence.
    level = LOG.setLogLevel(0)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    finally:
        LOG.setLogLevel(level)
