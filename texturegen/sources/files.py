"""Images stored as files below a folder: how they are listed, named and read.

Shared by `folder` and `imagenet100`; `webdataset` uses the retries. Keys and labels depend on paths relative to the
folder alone, so a data set can be moved without changing what a build writes.
"""

import errno
import hashlib
import os
import re
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from texturegen.console import plural, warn
from texturegen.errors import ImageError, SourceLost, UserError
from texturegen.sources.base import Listing, modified_at
from texturegen.storage import ranges
from texturegen.storage.names import printable, to_text

Decoded = TypeVar("Decoded")
Result = TypeVar("Result")

EXTENSIONS = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"})

MAX_NAMED = 3  # files in a warning
# Retrying does not help with these.
PERMANENT = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def walk(folder: str | Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield everything below a folder, except hidden entries.

    Symbolic links are followed unless they lead back to a folder that contains them.

    Parameters
    ----------
    folder : where to look.
    prefix : prepended to every path; ends in "/" unless empty.

    Yields
    ------
    The path, separated by "/" and relative to the outermost folder, and its kind: "file" or "other" (see `kind_of`).
    """
    waiting = [(os.fspath(folder), prefix, os.path.realpath(folder), frozenset[str]())]
    while waiting:  # not recursive: folders may be nested deeper than Python's stack
        path, prefix, real, parents = waiting.pop()
        parents |= {real}
        for entry in os.scandir(path):
            kind = kind_of(entry)
            if kind == "folder":
                inner = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                if inner not in parents:
                    waiting.append((entry.path, f"{prefix}{entry.name}/", inner, parents))
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


def warn_of_lost_images(root: Path, ignored: Sequence[str]) -> None:
    """Warn of ignored entries that have the extension of an image: links whose target is missing, pipes, devices."""
    lost = [path for path in ignored if is_image(path, "file")]
    if lost:
        named = ", ".join(lost[:MAX_NAMED]) + ", ..." * (len(lost) > MAX_NAMED)
        warn(
            f"{root}: {plural(len(lost), 'image')} left out, because there is no file behind the name (a broken link): "
            f"{named}; restore them and build into a new directory to have them"
        )


def make_key(path: str) -> str:
    """Return the key of the image at `path`: up to 70 readable characters of the path, and a hash of all of it."""
    data = path.encode("utf-8", "surrogateescape")
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", os.path.splitext(path)[0].replace("/", "-"))
    return f"{readable[:70]}-{hashlib.sha256(data).hexdigest()[:8]}"


def require_unique(paths: Sequence[str]) -> None:
    """Raise UserError if two paths have the same key."""
    seen: dict[str, str] = {}
    for path in paths:
        key = make_key(path)
        if key in seen:
            raise UserError(f"the files {seen[key]} and {path} get the same key {key}; rename one of them")
        seen[key] = path


def make_listing(root: Path, paths: Sequence[str], classes: list[str]) -> Listing:
    """Return the listing of files below `root`, with their sizes and times.

    Raises
    ------
    OSError : a file is gone, or its folder cannot be read.
    UserError : a name is not ASCII and this process does not read names as UTF-8.
    """
    _refuse_other_encodings(root, (*classes, *paths))
    listed_at = time.time_ns()
    sizes, times = array("q"), array("q")
    for path in paths:  # about 4 us a file
        found = os.stat(f"{root}/{path}")
        sizes.append(found.st_size)
        times.append(modified_at(found))
    return Listing(paths, classes, sizes, times, listed_at)


def _refuse_other_encodings(root: Path, names: Sequence[str]) -> None:
    """Raise UserError if another process could read the same names otherwise: keys and labels would differ."""
    encoding = sys.getfilesystemencoding()
    other = None if encoding == "utf-8" else next((name for name in names if not name.isascii()), None)
    if other is not None:
        raise UserError(
            f"{root}: the name {printable(other)} is read as {encoding} here, and as UTF-8 on most "
            "machines, with other keys; set PYTHONUTF8=1, or a locale such as C.UTF-8, and run the same command again"
        )


def names_and_sizes(listing: Listing) -> list[list[str | int]]:
    """Return [path, bytes] of each file: copies at another resolution have the same names but other sizes."""
    return [[path, size] for path, size in zip(listing.paths, listing.sizes, strict=True)]


def read_image(
    key: str, root: Path, listing: Listing, index: int, decode: Callable[[bytes], Decoded]
) -> tuple[bytes, Decoded]:
    """Read and decode one file of a listing.

    Parameters
    ----------
    key : of the image, for the error.
    root : the folder.
    listing, index : the files, and the number of this one.
    decode : function of the file's bytes; its UserError says why they cannot be decoded.

    Returns
    -------
    The bytes, and what `decode` returned.

    Raises
    ------
    ImageError : the file cannot be read, not even after `ranges.RETRY_DELAYS`; it cannot be decoded; it changed
        after the listing.
    SourceLost : the file cannot be read and the folder itself is gone.
    """
    path = listing.paths[index]
    try:
        data, found = retry(lambda: _read(root / path))
        change = listing.find_change(index, found)
        if change:
            raise UserError(f"{change}; restore it and use --retry-failed, or build into another directory")
        return data, decode(data)
    except OSError as error:
        if not root.is_dir():
            raise SourceLost(f"the folder {root} cannot be reached any more") from error
        raise ImageError(key, f"{to_text(path)} cannot be read: {error.strerror}") from error
    except UserError as error:
        raise ImageError(key, f"{to_text(path)}: {error}") from error


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    """Return the bytes of a file and its state after they were read."""
    with open(path, "rb") as f:
        return f.read(), os.fstat(f.fileno())


def retry(read: Callable[[], Result]) -> Result:
    """Return read(), retried if it raises an OSError that may pass, as on a network file system."""
    return ranges.retry(read, lambda error: isinstance(error, OSError) and error.errno not in PERMANENT)
