"""Images stored as files below a folder: how they are listed, named and read.

Shared by `folder` and `imagenet100`; `webdataset` uses the retries. Keys and labels depend on paths relative to the
folder alone, so a data set can be moved without changing what a build writes.
"""

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from texturegen.errors import ImageError, SourceLost, UserError
from texturegen.storage.names import to_text

Decoded = TypeVar("Decoded")
Result = TypeVar("Result")

EXTENSIONS = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"})

RETRY_DELAYS = (0.2, 1.0, 5.0)  # seconds
# Retrying does not help with these.
PERMANENT = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def walk(folder: str | Path, prefix: str = "", parents: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """Yield everything below a folder, except hidden entries.

    Symbolic links are followed unless they lead back to a folder that contains them.

    Parameters
    ----------
    folder : where to look.
    prefix : prepended to every path; ends in "/" unless empty.
    parents : resolved paths of the folders that contain `folder`.

    Yields
    ------
    The path, separated by "/" and relative to the outermost folder, and its kind: "file" or "other" (see `kind_of`).
    """
    real = os.path.realpath(folder)
    if real in parents:
        return
    for entry in os.scandir(folder):
        kind = kind_of(entry)
        if kind == "folder":
            yield from walk(entry.path, f"{prefix}{entry.name}/", parents | {real})
        elif kind != "hidden":
            yield prefix + entry.name, kind


def kind_of(entry: os.DirEntry[str]) -> str:
    """Return "hidden" (the name starts with a dot), "folder", "file", or "other" (a broken link, a pipe, a device)."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:  # a link to itself
        return "other"


def is_image(path: str, kind: str) -> bool:
    """Return True for a file whose extension is one of EXTENSIONS, in either case."""
    # os.path.splitext takes a third of the time of PurePosixPath.suffix.
    return kind == "file" and os.path.splitext(path)[1][1:].lower() in EXTENSIONS


def make_key(path: str) -> str:
    """Return the key of the image at `path`: up to 70 readable characters of the path, and a hash of all of it."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", os.path.splitext(path)[0].replace("/", "-"))
    return f"{readable[:70]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def require_unique(paths: Sequence[str]) -> None:
    """Raise UserError if two paths have the same key."""
    seen: dict[str, str] = {}
    for path in paths:
        key = make_key(path)
        if key in seen:
            raise UserError(f"the files {seen[key]} and {path} get the same key {key}; rename one of them")
        seen[key] = path


def list_sizes(root: Path, paths: Sequence[str]) -> list[list[str | int]]:
    """Return [path, size in bytes] of each file: copies at another resolution have the same names but other sizes."""
    return [[path, os.stat(f"{root}/{path}").st_size] for path in paths]  # about 4 us a file


def read_image(key: str, root: Path, path: str, decode: Callable[[bytes], Decoded]) -> tuple[bytes, Decoded]:
    """Read and decode one file.

    Parameters
    ----------
    key : of the image, for the error.
    root, path : the folder, and the file relative to it.
    decode : function of the file's bytes; its UserError says why they cannot be decoded.

    Returns
    -------
    The bytes, and what `decode` returned.

    Raises
    ------
    ImageError : the file cannot be read, not even after RETRY_DELAYS, or cannot be decoded.
    SourceLost : the file cannot be read and the folder itself is gone.
    """
    try:
        data = retry(lambda: (root / path).read_bytes())
        return data, decode(data)
    except OSError as error:
        if not root.is_dir():
            raise SourceLost(f"the folder {root} cannot be reached any more") from error
        raise ImageError(key, f"{to_text(path)} cannot be read: {error.strerror}") from error
    except UserError as error:
        raise ImageError(key, f"{to_text(path)}: {error}") from error


def retry(read: Callable[[], Result]) -> Result:
    """Return read(), retrying after RETRY_DELAYS if it raises an OSError that may pass, as on a network file system."""
    for seconds in RETRY_DELAYS:
        try:
            return read()
        except OSError as error:
            if error.errno in PERMANENT:
                raise
            time.sleep(seconds)
    return read()
