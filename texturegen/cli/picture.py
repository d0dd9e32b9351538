"""One texture from whole pictures, from files to a file: what `texturegen texture` does."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from texturegen.errors import UserError
from texturegen.storage.atomic import write_atomically
from texturegen.storage.image import decode_image
from texturegen.system.threads import run_in_threads
from texturegen.texture import resolve_settings, synthesize
from texturegen.texture.patches import read_size
from texturegen.texture.quality import Quality, measure

# What can be written, by suffix, and the longest side that OpenCV can write in it.
FORMATS = {".png": 1_000_000, ".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}


class TextureResult(NamedTuple):
    """What was written: the texture's size (H, W), its figures, and the wall seconds that synthesis took."""

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
    """Write a texture of which the pictures, whole, are the patches; grey where all of them are.

    Parameters
    ----------
    inputs : image files of any kind that `images.decode_image` reads, one or more.
    output : the file to write, atomically; its suffix, one of FORMATS, decides the format.
    size : (H, W) of the texture; None: as the first picture.
    method, seed, settings : as for `texturegen.synthesize`.

    Raises
    ------
    UserError : an output that cannot be written, before any work; a picture that cannot be decoded or is too small
        for the method; a method, setting, size or seed that `synthesize` refuses; too little memory.
    OSError : a file that cannot be read or written.
    """
    most = _check_output(output, inputs)
    resolve_settings(method, settings)
    pictures = _read(inputs)
    height, width = read_size(pictures[0].shape[:2] if size is None else size)
    if max(height, width) > most:
        raise UserError(
            f"{output}: a {output.suffix} file has sides of at most {most} pixels, the texture {height}x{width}; "
            "choose a smaller --size or .png"
        )

    def work(_: int) -> tuple[np.ndarray, TextureResult]:
        begin = time.perf_counter()
        texture = synthesize(pictures, (height, width), method, seed, **settings)
        seconds = time.perf_counter() - begin
        quality = measure(pictures, texture.image, seed, source=texture.source)
        return texture.image, TextureResult((height, width), quality, seconds)

    try:
        # In a thread, because Python notices Ctrl-C in this one only between kernels, which may take minutes.
        ((image, made),) = run_in_threads(work, 1, 1)
    except UserError as error:
        # The library counts patches; whoever named files is told the file.
        raise UserError(re.sub(r"\bpatch (\d+)\b", lambda found: str(inputs[int(found[1])]), str(error))) from None
    except MemoryError:
        raise UserError("too little memory for this; use smaller pictures or a smaller --size") from None
    write_atomically(output, _encode(image, output.suffix))
    return made


def _check_output(output: Path, inputs: Sequence[Path]) -> int:
    """Refuse an output that cannot be written; return its format's longest side."""
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"{output}: not a format that can be written; end the name in {', '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise UserError(f"{output}: there is no directory {output.parent}; make it first")
    if output.is_dir():
        raise UserError(f"{output}: is a directory")
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise UserError(f"{output}: is one of the pictures too, and would be lost; choose another name")
    return FORMATS[output.suffix.lower()]


def _read(paths: Sequence[Path]) -> list[np.ndarray]:
    """Decode pictures: uint8, RGB (h, w, 3), or grey (h, w) where none of them has a colour in it."""
    pictures = []
    for path in paths:
        try:
            pictures.append(decode_image(path.read_bytes()))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    if all((picture == picture[..., :1]).all() for picture in pictures):
        return [picture[..., 0] for picture in pictures]
    return pictures


def _encode(image: np.ndarray, suffix: str) -> bytes:
    """Encode uint8 RGB (H, W, 3) or grey (H, W); PNG and WebP without loss, JPEG at OpenCV's quality of 95."""
    done, data = cv2.imencode(suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image)
    if not done:
        raise RuntimeError(f"OpenCV could not encode a {suffix} image of shape {image.shape}")
    return data.tobytes()
