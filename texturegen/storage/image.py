"""Decoding and encoding of images, the same for sources and shards.

This module and image_header.py decide everything about the bytes of a picture: format, size, orientation, alpha, depth
and limits. What leaves a decoder is pixels or a `UserError`; MemoryError alone passes, because it is no fault of the
image. The pixels are those of Pillow's `ImageOps.exif_transpose(Image.open(file)).convert("RGB")`, but of 16 bits of
grey the upper 8 are kept, where Pillow clips.

OpenCV decodes PNG, JPEG and WebP: benchmarks/shards.py finds it within a few per cent of the fastest decoder for PNG.
Pillow decodes the other formats, CMYK JPEG and animated WebP, where OpenCV differs from it or cannot read them.

Damage inside a JPEG or a WebP whose end is intact goes unnoticed by OpenCV and Pillow alike: neither format has a
checksum. PNG has one for each chunk. The manifest of shards has the sha256 of every member, which `verify` compares.
"""

import io
from typing import Any, NoReturn

import cv2
import numpy as np
from PIL import Image

from texturegen.errors import UserError
from texturegen.storage.image_header import UNKNOWN, Header, kind_of, plain_size, quiet_warnings, read_header

# A limit, because a small file can decode to more than the memory. Pillow warns from here on too.
MAX_PIXELS = 89_000_000
TOO_LARGE = f"the image has more than the limit of {MAX_PIXELS // 10**6} million pixels"

# The formats that Pillow decodes. No others, because it runs external programs for some.
_PILLOW_FORMATS = ("BMP", "GIF", "TIFF", "PPM")

# Encodings of shards -> file extension.
ENCODINGS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
MAX_SIDES = {"png": 1_000_000, "webp": 16_383, "jpeg": 65_500}  # pixels; what the formats, or OpenCV, can write
ENCODING_OF = {ext: encoding for encoding, ext in ENCODINGS.items()}
# Measured by benchmarks/shards.py. PNG: OpenCV's defaults (level 1, run-length strategy, filter Sub); other levels and
# filters save at most 15 % of the bytes and take 10 to 700 % more time. WebP: a quality above 100 is lossless. JPEG:
# 4:4:4, because textures have much of their structure in colour.
_OPTIONS = {
    "png": [],
    "webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
    "jpeg": [
        *(cv2.IMWRITE_JPEG_QUALITY, 95),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ],
}

_UINT8 = np.dtype(np.uint8)  # found faster than np.uint8, by 0.1 us of the 20 us of a small image

# OpenCV never turns an image: image_header.py alone says what the orientation is.
_COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {
    divisor: flag | cv2.IMREAD_IGNORE_ORIENTATION
    for divisor, flag in (
        (8, cv2.IMREAD_REDUCED_COLOR_8),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (2, cv2.IMREAD_REDUCED_COLOR_2),
    )
}

# Silenced once for the process, because the level is global and threads that switch it race. Errors carry the reason.
# OpenCV 5 has moved setLogLevel to cv2.utils.logging.
_LOG: Any = getattr(cv2.utils, "logging", cv2)
_LOG.setLogLevel(0)


def decode_image(data: bytes) -> np.ndarray:
    """Decode an image file to RGB.

    The format is recognised by the content: PNG, JPEG, WebP, BMP, GIF, TIFF or PNM. The EXIF orientation is applied,
    16-bit channels keep their upper 8 bits, grey, palette, 1-bit and CMYK images become RGB, alpha is dropped (as in
    torchvision's ImageFolder), colour profiles are ignored, and of an animation the first frame is taken. Damaged
    metadata is ignored: an image whose EXIF cannot be read is upright.

    Parameters
    ----------
    data : the file's bytes.

    Returns
    -------
    uint8 (H, W, 3) RGB.

    Raises
    ------
    UserError : the bytes are not a complete image, or it has more than MAX_PIXELS.
    MemoryError : not enough memory for the pixels.
    """
    if kind_of(data) is None:
        return _decode_with_pillow(data, _PILLOW_FORMATS)
    return _decode_known(data, read_header(data))


def decode_member(data: bytes) -> np.ndarray:
    """Decode like `decode_image`, but only the formats that shards hold: PNG, JPEG and WebP."""
    if (size := plain_size(data)) is not None:
        return _decode_pixels(data, *size)
    if kind_of(data) is None:
        raise UserError("the bytes are not a PNG, JPEG or WebP image")
    return _decode_known(data, read_header(data))


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
    if kind_of(data) != "JPEG":
        return decode_image(data), 1
    header = read_header(data)
    width, height = header.width, header.height
    if header.channels in (1, 3) and width * height <= MAX_PIXELS:
        for divisor, flag in _REDUCED.items():
            if -(-min(width, height) // divisor) >= short:
                try:
                    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
                except cv2.error:
                    break
                if image is None or image.shape[:2] != (-(-height // divisor), -(-width // divisor)):
                    break  # the full decoding says why, or succeeds
                return _turn(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), header.orientation), divisor
    return _decode_known(data, header), 1


def original_extension(data: bytes, image: np.ndarray) -> str | None:
    """Return the extension under which a shard may hold the bytes unchanged; None if the image must be encoded anew.

    An 8-bit RGB or grey JPEG, PNG or WebP without rotation, alpha or animation is kept if Pillow decodes it to the same
    pixels: readers of shards use Pillow and ignore the EXIF orientation. Not all of them read other images alike.

    Parameters
    ----------
    data : the file's bytes.
    image : what `decode_image` returned for them, at full resolution.
    """
    kind = kind_of(data)
    if kind is None:
        return None
    header = read_header(data)
    if header.orientation != 1 or header.bits != 8 or header.channels not in (1, 3):
        return None
    if header.has_palette or header.is_animated:
        return None
    try:
        plain = _open_with_pillow(data, (kind.upper(),))
        # An MPO, a JPEG followed by more pictures, is re-encoded.
        if plain.format != kind.upper() or plain.mode not in ("RGB", "L"):
            return None
        pixels = np.asarray(plain)
        expected = image if pixels.ndim == 3 else image[..., 0]
        is_same = np.array_equal(pixels, expected) and (pixels.ndim == 3 or _is_grey(image))
    except MemoryError:
        raise
    except Exception:  # Pillow refuses the file, or a part of its metadata
        return None
    return {"JPEG": "jpg", "PNG": "png", "WebP": "webp"}[kind] if is_same else None


def encode_image(image: np.ndarray, encoding: str = "png") -> bytes:
    """Encode an image.

    Parameters
    ----------
    image : uint8 (H, W, 3) RGB, or (H, W) grey.
    encoding : "png" or "webp", which are lossless, or "jpeg", with quality 95 and 4:4:4 chroma.

    Raises
    ------
    UserError : a side has more pixels than the format can hold.
    """
    if max(image.shape[:2]) > MAX_SIDES[encoding]:
        raise UserError(
            f"the image has {image.shape[1]}x{image.shape[0]} pixels, but a side of a {encoding} file has at most "
            f"{MAX_SIDES[encoding]}; use png, or make the image smaller"
        )
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(f".{ENCODINGS[encoding]}", pixels, _OPTIONS[encoding])
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape}")
    return data.tobytes()


def encode_png(image: np.ndarray) -> bytes:
    """Encode an image, uint8 (H, W, 3) RGB or (H, W) grey, as PNG."""
    return encode_image(image, "png")


def _decode_known(data: bytes, header: Header) -> np.ndarray:
    """Decode a PNG, JPEG or WebP."""
    kind, width, height = header.kind, header.width, header.height
    if (kind == "WebP" and header.is_animated) or (kind == "JPEG" and header.channels == 4):
        # OpenCV converts CMYK with other rounding, and may blend the first frame with a background.
        if width * height > MAX_PIXELS:
            raise UserError(TOO_LARGE)
        image = _decode_with_pillow(data if header.clean is None else header.clean, (kind.upper(),))
    else:
        image = _decode_pixels(data if header.clean is None else header.clean, width, height)
    return image if header.orientation == 1 else _turn(image, header.orientation)


def _decode_pixels(data: bytes, width: int, height: int) -> np.ndarray:
    """Decode with OpenCV, ignoring the orientation; UserError if the image has another size than the header says."""
    if width * height > MAX_PIXELS:
        raise UserError(TOO_LARGE)
    try:
        image = cv2.imdecode(np.frombuffer(data, _UINT8), _COLOUR)
    except cv2.error:
        image = None
    if image is None:
        _refuse(data, width, height)
    if image.shape != (height, width, 3):
        found = f"{image.shape[1]}x{image.shape[0]}"
        raise UserError(f"the {kind_of(data)} file is damaged: its header says {width}x{height}, its pixels {found}")
    return image


def _refuse(data: bytes, width: int, height: int) -> NoReturn:
    """Raise UserError, or MemoryError if there is not enough memory: OpenCV reports both failures alike."""
    try:
        # The pixels, and the 16-bit coefficients of a progressive JPEG.
        np.empty((height, width, 9), np.uint8)
    except MemoryError:
        raise MemoryError(f"an image of {width}x{height} pixels") from None
    raise UserError(f"the {kind_of(data)} file is truncated, damaged or of a kind that OpenCV cannot decode")


def _decode_with_pillow(data: bytes, formats: tuple[str, ...]) -> np.ndarray:
    try:
        picture = _open_with_pillow(data, formats)
    except Image.DecompressionBombError:
        raise UserError(TOO_LARGE) from None
    except Exception:  # a damaged header can make Pillow raise almost any exception
        raise UserError(UNKNOWN if data else "the file is empty") from None
    kind = {"PPM": "PNM", "MPO": "JPEG", "WEBP": "WebP"}.get(picture.format or "", picture.format)
    if picture.width * picture.height > MAX_PIXELS:
        raise UserError(TOO_LARGE)
    try:
        picture.load()  # applies the orientation of a TIFF
        image = _to_rgb(picture)
    except MemoryError:
        raise MemoryError(f"an image of {picture.width}x{picture.height} pixels") from None
    except UserError:
        raise
    except Exception:  # as for the header
        raise UserError(f"the {kind} file is truncated or damaged") from None
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise UserError(TOO_LARGE)
    return image


def _to_rgb(picture: Image.Image) -> np.ndarray:
    """Convert as Pillow does, except grey of more than 8 bits, which Pillow would clip."""
    if not picture.mode.startswith(("I", "F")):
        return np.array(picture.convert("RGB"))
    bits = 16
    if picture.format == "TIFF":
        bits = int(picture.tag_v2.get(258, (32,))[0])  # type: ignore[attr-defined]
    if picture.mode.startswith("F") or (picture.format == "TIFF" and not picture.mode.startswith("I;16")):
        raise UserError(f"the {picture.format} file has signed, floating-point or 32-bit pixels; convert it to 8 bits")
    grey = (np.asarray(picture) >> (bits - 8)).astype(np.uint8)
    if picture.format == "TIFF" and picture.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
        grey = 255 - grey  # WhiteIsZero, which Pillow inverts for 8 bits only
    return np.repeat(grey[..., None], 3, axis=2)


def _open_with_pillow(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Open an image without warnings; raises what Pillow raises."""
    with quiet_warnings():
        return Image.open(io.BytesIO(data), formats=formats)


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return the image upright, given its EXIF orientation."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _is_grey(image: np.ndarray) -> bool:
    return bool((image == image[..., :1]).all())
