"""Headers of PNG, JPEG and WebP files: size, depth, colour, orientation, animation.

Every decision about a picture is taken from the header read here, not by a decoder, because decoders disagree about
unusual metadata. Positions follow libpng, libjpeg and libwebp, so that the size found here is the size they decode; the
meaning of the metadata follows Pillow. No metadata can make a function of this module fail.
"""

import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from PIL import Image

from texturegen.errors import UserError

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = PNG_START + b"\0\0\0\rIHDR"
UNKNOWN = "the file is not an image of a known format, or its header is damaged"

_EXIF_ORIENTATION = 0x0112
_MAX_TEXT = 2**20  # bytes of a decompressed text chunk; Pillow has the same limit
_PNG_HEAD = struct.Struct(">16sII9xI4s").unpack_from  # the first chunk too
_PNG_CHUNK = struct.Struct(">I4s").unpack_from
# PNG colour type -> channels, permitted depths (PNG specification, table 11.1).
_PNG_COLOURS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (3, (1, 2, 4, 8)), 4: (2, (8, 16)), 6: (4, (8, 16))}
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_SEGMENT = struct.Struct(">HH").unpack_from
_JPEG_FRAME = struct.Struct(">HHB").unpack_from
_JPEG_PLAIN = frozenset({0xFFE0, 0xFFDB, 0xFFC4, 0xFFDD})  # JFIF, DQT, DHT, DRI
_WEBP_SIZE = struct.Struct("<HH").unpack_from
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # frame headers: not DHT, JPG, DAC
_WARNINGS_LOCK = threading.Lock()
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


class Header(NamedTuple):
    """What a file says about its picture.

    Attributes
    ----------
    kind : "PNG", "JPEG" or "WebP".
    width, height : size in pixels as stored, before the orientation is applied.
    channels : 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha, or CMYK for a JPEG.
    bits : bits per channel, or per index of a palette.
    orientation : EXIF orientation, 1 to 8; 1 is upright.
    has_palette : whether pixels are indices.
    is_animated : whether there may be more frames than one.
    clean : the file without the chunks that do not matter for the pixels; None if there are no such chunks.
    """

    kind: str
    width: int
    height: int
    channels: int = 3
    bits: int = 8
    orientation: int = 1
    has_palette: bool = False
    is_animated: bool = False
    clean: bytes | None = None


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Silence Python's warnings; one thread at a time, because the filters belong to the process."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def kind_of(data: bytes) -> str | None:
    """Return "PNG", "JPEG" or "WebP" by the first bytes of a file; None for other files."""
    if data[:2] == b"\xff\xd8":
        return "JPEG"
    if data[:8] == PNG_START:
        return "PNG"
    return "WebP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def read_header(data: bytes) -> Header:
    """Read the header of a file of which `kind_of` knows the kind.

    Raises
    ------
    UserError : the file is truncated, or a part that matters for the pixels is damaged.
    """
    read = {"PNG": _read_png, "JPEG": _read_jpeg, "WebP": _read_webp}[kind_of(data) or ""]
    try:
        header = read(data)
    except (IndexError, struct.error):  # the file ends within the header
        raise UserError(UNKNOWN) from None
    if not header.width or not header.height:
        raise UserError(UNKNOWN)
    return header


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of an upright PNG, JPEG or WebP without metadata, which decoders read alike.

    None for any other file, which `read_header` decides. Kept apart for speed, because shards hold such files: it takes
    1 us for a small image, whose decoding takes 20 us.
    """
    try:
        start, width, height, length, name = _PNG_HEAD(data)
        if start == PNG_HEADER:
            at, last = 45 + length, len(data) - 12
            while name == b"IDAT" and at < last:
                length, name = _PNG_CHUNK(data, at)
                at += length + 12
            return (width, height) if at == last and name == b"IDAT" and data.endswith(_PNG_END) else None
        return _plain_webp_size(data) if start[:4] == b"RIFF" else _plain_jpeg_size(data)
    except struct.error:  # the file ends within the header
        return None


def orientation_of(metadata: dict[str, Any]) -> int:
    """Return the orientation, 1 to 8, that Pillow finds in an image's `info`; 1 if the metadata is damaged."""
    if not metadata:
        return 1
    picture = Image.new("L", (1, 1))
    for name, value in metadata.items():
        picture.info[name] = value
    try:
        with quiet_warnings():
            found = picture.getexif().get(_EXIF_ORIENTATION, 1)
        # Pillow accepts any number that equals 1 to 8, whatever its TIFF type.
        return {number: number for number in range(1, 9)}.get(found, 1)
    except Exception:  # damaged metadata can make Pillow raise almost any exception
        return 1


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    if data[:2] != b"\xff\xd8":
        return None
    at, size = 2, None
    while True:
        marker, length = _JPEG_SEGMENT(data, at)
        if marker == 0xFFC0 or marker == 0xFFC2:  # baseline, progressive
            height, width, channels = _JPEG_FRAME(data, at + 5)
            if size is not None or channels not in (1, 3):
                return None
            size = width, height
        elif marker not in _JPEG_PLAIN:
            return size if marker == 0xFFDA else None
        at += 2 + length


def _plain_webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[8:16]
    if kind == b"WEBPVP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"WEBPVP8 ":
        width, height = _WEBP_SIZE(data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _read_png(data: bytes) -> Header:
    if data[:16] != PNG_HEADER or len(data) < 33:
        raise UserError(UNKNOWN)
    width, height, bits, colour, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    channels, depths = _PNG_COLOURS.get(colour, (0, ()))
    if bits not in depths or compression or filtering or interlace > 1 or max(width, height) >= 2**31:
        raise UserError(UNKNOWN)
    metadata: dict[str, Any] = {}
    critical = [PNG_START]
    has_alpha = has_extra = is_animated = False
    for name, start, end, is_whole in _png_chunks(data):
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            if not is_whole:
                raise UserError(f"the PNG file is damaged: the checksum of {name.decode()} is wrong")
            critical.append(data[start - 8 : end + 4])
            continue
        if not name[0] & 0x20:  # an upper-case first letter: the pixels cannot be decoded without this chunk
            raise UserError("the PNG file is damaged: it has an unknown critical chunk")
        has_extra = True
        if not is_whole:  # ignored, as in libpng
            continue
        has_alpha |= name == b"tRNS"
        is_animated |= name == b"acTL"
        _read_png_metadata(name, data[start:end], metadata)
    if has_alpha:
        channels = {1: 2, 3: 4}.get(channels, channels)
    clean = b"".join(critical) if has_extra else None
    return Header("PNG", width, height, channels, bits, orientation_of(metadata), colour == 3, is_animated, clean)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int, bool]]:
    """Yield each chunk up to IEND: its name, the range of its content, and whether the checksum is right."""
    at, name = 8, b""
    while name != b"IEND":
        if len(data) < at + 12:
            raise UserError("the PNG file is truncated")
        length, name = _PNG_CHUNK(data, at)
        start, end = at + 8, at + 8 + length
        if len(data) < end + 4:
            raise UserError("the PNG file is truncated or damaged")
        yield name, start, end, zlib.crc32(data[at + 4 : end]) == int.from_bytes(data[end : end + 4])
        at = end + 4


def _read_png_metadata(name: bytes, content: bytes, metadata: dict[str, Any]) -> None:
    """Add what a chunk says of the orientation under the name that Pillow gives it in `info`."""
    if name == b"eXIf":
        metadata["exif"] = b"Exif\0\0" + content
        return
    if name not in (b"tEXt", b"zTXt", b"iTXt"):
        return
    key, _, value = content.partition(b"\0")
    if key not in (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp"):
        return
    text: bytes | None = value
    if name == b"zTXt":
        text = _inflate(value[1:]) if value[:1] == b"\0" else None
    elif name == b"iTXt":
        match = re.match(rb"(\0.|\x01\0)[^\0]*\0[^\0]*\0", value, re.DOTALL)
        text = None if match is None else value[match.end() :]
        if text is not None and value[0]:
            text = _inflate(text)
    if text is None:
        return
    if key == b"exif" and name == b"tEXt":
        metadata["exif"] = text
    else:
        metadata[key.decode()] = text.decode("utf-8" if name == b"iTXt" else "latin-1", "replace")


def _inflate(data: bytes) -> bytes | None:
    """Decompress, or return None if the data are damaged or larger than _MAX_TEXT."""
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, _MAX_TEXT)
    except zlib.error:
        return None
    return None if stream.unconsumed_tail else text


def _read_jpeg(data: bytes) -> Header:
    metadata: dict[str, Any] | None = None
    frame = None
    at = 2
    while True:
        # As libjpeg's next_marker: skips bytes that are no marker, fill bytes FF, and FF 00.
        if data[at] != 0xFF:
            at = data.index(b"\xff", at) if b"\xff" in data[at:] else len(data)
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == 0xDA:
            break
        if marker == 0 or 0xD0 <= marker <= 0xD7 or marker == 1:  # no segment: RST0 to RST7, TEM
            continue
        length = data[at] << 8 | data[at + 1]
        if marker in _SOF:
            if frame is not None:
                raise UserError("the JPEG file is damaged: it has two frame headers")
            frame = data[at + 5] << 8 | data[at + 6], data[at + 3] << 8 | data[at + 4], data[at + 7], data[at + 2]
        elif length < 2 or marker < 0xC0 or marker in (0xD8, 0xD9):
            raise UserError(UNKNOWN)
        elif marker == 0xE1:
            metadata = metadata or {}
            _read_app1(data[at + 2 : at + length], metadata)
        at += length
    if frame is None:
        raise UserError(UNKNOWN)
    return Header("JPEG", *frame, orientation_of(metadata) if metadata else 1)


def _read_app1(content: bytes, metadata: dict[str, Any]) -> None:
    if content.startswith(b"Exif\0\0"):
        # A second segment continues the first.
        metadata["exif"] = metadata["exif"] + content[6:] if "exif" in metadata else content
    elif content.startswith(_XMP):
        metadata["xmp"] = content[len(_XMP) :]


def _read_webp(data: bytes) -> Header:
    kind = data[12:16]
    if (size := _plain_webp_size(data)) is not None:
        return Header("WebP", *size, 4 if kind == b"VP8L" and data[24] & 0x10 else 3)
    if kind != b"VP8X":
        raise UserError(UNKNOWN)
    flags = data[20]
    width, height = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    metadata: dict[str, Any] = {}
    at = 12
    while flags & 0x0C and len(data) >= at + 8:
        name, length = struct.unpack_from("<4sI", data, at)
        # Without its flag, readers ignore a chunk.
        if name == b"EXIF" and flags & 0x08:
            metadata.setdefault("exif", data[at + 8 : at + 8 + length])
        elif name == b"XMP " and flags & 0x04:
            metadata.setdefault("xmp", data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    channels = 4 if flags & 0x10 else 3
    return Header("WebP", width, height, channels, 8, orientation_of(metadata), False, bool(flags & 0x02))
