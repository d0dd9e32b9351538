"""One texture from picture files to a picture file, for `texturegen texture`.

`storage.image.encode_image` encodes them as in shards: PNG and WebP without loss, JPEG at quality 95 and 4:4:4.
"""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from texturegen.errors import MissingError, UserError
from texturegen.storage.atomic import write_atomically
from texturegen.storage.image import MAX_SIDES, decode_image, encode_image
from texturegen.system.threads import run_in_threads
from texturegen.texture import resolve_settings, synthesize
from texturegen.texture.patches import read_size
from texturegen.texture.quality import Quality, measure

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}  # suffix of the output -> its encoding


class TextureResult(NamedTuple):
    """A texture that was written.

    Attributes
    ----------
    size : (H, W) in pixels.
    quality : its quality figures.
    seconds : wall time of the synthesis.
    """

    size: tuple[int, int]
    quality: Quality
    seconds: float


def make_texture(
    inputs: Sequence[Path],
    output: Path,
    size: tuple[int, int] | None,
    method: str,
    seed: int,
    settings: dict[str, Any],
) -> TextureResult:
    """Synthesise a texture with whole pictures as the patches, and write it to a file.

    The texture is grey if all pictures are.

    Parameters
    ----------
    inputs : one or more image files, of any format that `decode_image` reads.
    output : file to write atomically; its suffix, one of FORMATS, decides the format.
    size : (H, W) of the texture in pixels; None for the size of the first picture.
    method, seed, settings : as for `texturegen.synthesize`.

    Raises
    ------
    UserError : an output that cannot be written (found before any work is done); a picture that cannot be decoded, or
        is too small for the method; an argument that `synthesize` rejects; too little memory.
    OSError : a file that cannot be read or written.
    """
    encoding = _check_output(output, inputs)
    max_side = MAX_SIDES[encoding]
    resolve_settings(method, settings)
    pictures = _read(inputs)
    height, width = read_size(pictures[0].shape[:2] if size is None else size)
    if max(height, width) > max_side:
        raise UserError(
            f"{output}: a {output.suffix} file has sides of at most {max_side} pixels, the texture {height}x{width}; "
            "choose a smaller --size or .png"
        )

    def work(_: int) -> tuple[np.ndarray, TextureResult]:
        begin = time.perf_counter()
        texture = synthesize(pictures, (height, width), method, seed, **settings)
        seconds = time.perf_counter() - begin
        quality = measure(pictures, texture.image, seed, source=texture.source)
        return texture.image, TextureResult((height, width), quality, seconds)

    try:
        # The main thread notices Ctrl-C only between kernels, which may take minutes; a worker thread leaves it free.
        ((image, made),) = run_in_threads(work, 1, 1)
    except UserError as error:
        # The library numbers patches; the user knows their files.
        raise UserError(re.sub(r"\bpatch (\d+)\b", lambda found: str(inputs[int(found[1])]), str(error))) from None
    except MemoryError:
        raise UserError("not enough memory; use smaller pictures or a smaller --size") from None
    write_atomically(output, encode_image(image, encoding))
    return made


def _check_output(output: Path, inputs: Sequence[Path]) -> str:
    """Return the encoding of the output; UserError if the file cannot be written."""
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"{output}: this format cannot be written; use one of {', '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise MissingError(f"{output}: the directory {output.parent} does not exist; create it first")
    if output.is_dir():
        raise UserError(f"{output} is a directory; give the name of a file")
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise UserError(f"{output}: is one of the pictures and would be overwritten; choose another name")
    return FORMATS[output.suffix.lower()]


def _read(paths: Sequence[Path]) -> list[np.ndarray]:
    """Decode pictures to uint8 arrays: grey (h, w) if all are grey, otherwise RGB (h, w, 3)."""
    pictures = []
    for path in paths:
        try:
            pictures.append(decode_image(path.read_bytes()))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    if all((picture == picture[..., :1]).all() for picture in pictures):
        return [picture[..., 0] for picture in pictures]
    return pictures
