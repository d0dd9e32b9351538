"""Any folder of images: flat, or with a folder per class."""

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from texturegen.errors import ImageError, SourceLost, UserError
from texturegen.sources.base import Item, Listing, Source
from texturegen.storage.image import decode_image, original_extension

Decoded = TypeVar("Decoded")
Result = TypeVar("Result")

WAITS = (0.2, 1.0, 5.0)  # seconds
# What waiting does not mend.
LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
EXTENSIONS = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"})


class Folder(Source):
    """The images under `root`, at any depth, in the order of their paths.

    The sorted folders directly under `root` are the classes (an empty one too, so that the numbers of two parallel
    folders agree); an image directly under `root` has label -1. Links are followed, but never back into a folder
    they are in. Hidden files and folders are passed over. `ignored` lists what else is there: files without an image's
    extension, broken links, and things that are no plain files.
    """

    name = "folder"

    def __init__(self, root: Path, split: None, size: int | None, listing: Listing | None = None) -> None:
        self.split, self.size, self.one_size = split, size, size is not None
        self._root = root
        if listing is not None:
            self.listing, self.classes, self._paths = listing, listing.classes, listing.paths
            return
        if not root.exists():
            raise UserError(f"the image folder {root} does not exist")
        if not root.is_dir():
            raise UserError(f"{root} is a file; the data set 'folder' needs a folder of images")
        try:
            self.classes = sorted(e.name for e in os.scandir(root) if kind_of(e) == "folder")
            found = sorted(walk(root))
        except OSError as error:
            raise UserError(f"the image folder {error.filename} cannot be read: {error.strerror}") from error
        paths = [path for path, kind in found if kind == "file" and extension_of(path) in EXTENSIONS]
        images = set(paths)
        self.ignored = [printable(path) for path, _ in found if path not in images]
        if not paths:
            others = f"only {len(self.ignored)} other file(s)" if self.ignored else "it is empty"
            raise UserError(f"no images in {root} ({others}); extensions: {', '.join(sorted(EXTENSIONS))}")
        require_unique(paths)
        self.listing, self._paths = Listing(paths, self.classes), paths

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        return make_key(self._paths[index])

    def _read(self, index: int) -> Item:
        path = self._paths[index]
        key = make_key(path)
        data, image = read_image(key, self._root, path, decode_image)
        top, _, rest = path.partition("/")
        label = self.classes.index(top) if rest else -1
        extension = original_extension(data)
        original = data if extension else None
        return Item(key, image, label, original, extension or "png", {"path": printable(path)})

    def _identity(self) -> Any:
        return [self.name, list_sizes(self._root, self._paths)]


def read_image(key: str, root: Path, path: str, decode: Callable[[bytes], Decoded]) -> tuple[bytes, Decoded]:
    """Return the bytes of a file and what `decode` makes of them; ImageError says what is wrong, and with which.

    A file that still cannot be read after some seconds is lost; when the folder itself is gone, SourceLost is raised.
    """
    try:
        data = patiently(lambda: (root / path).read_bytes())
        return data, decode(data)
    except OSError as error:
        if not root.is_dir():
            raise SourceLost(f"the folder {root} cannot be reached any more") from error
        raise ImageError(key, f"{printable(path)} cannot be read: {error.strerror}") from error
    except UserError as error:
        raise ImageError(key, f"{printable(path)}: {error}") from error


def patiently(read: Callable[[], Result]) -> Result:
    """Return read(); an OSError that may pass, as those of a network, lets it try again after 0.2, 1 and 5 seconds."""
    for seconds in WAITS:
        try:
            return read()
        except OSError as error:
            if error.errno in LASTING:
                raise
            time.sleep(seconds)
    return read()


def list_sizes(root: Path, paths: Sequence[str]) -> list[list[str | int]]:
    """[path, size] of each: tells apart two copies of a data set under the same names, at about 4 us a file."""
    return [[path, os.stat(f"{root}/{path}").st_size] for path in paths]


def walk(folder: str | Path, prefix: str = "", above: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """Yield (relative path with "/", kind) of all that is under `folder`; `above`: the real folders it is in."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        kind = kind_of(entry)
        if kind == "folder":
            yield from walk(entry.path, f"{prefix}{entry.name}/", above | {real})
        elif kind != "hidden":
            yield prefix + entry.name, kind


def kind_of(entry: os.DirEntry[str]) -> str:
    if entry.name.startswith("."):
        return "hidden"
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:  # a link to itself
        return "other"


def extension_of(path: str) -> str:
    return os.path.splitext(path)[1][1:].lower()  # a third of the time of PurePosixPath


def printable(path: str) -> str:
    """File names may hold bytes that are no UTF-8; text must not."""
    return os.fsencode(path).decode(errors="replace")


def make_key(path: str) -> str:
    """A readable part of the path for people, and a hash of all of it to keep it apart from the others."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", os.path.splitext(path)[0].replace("/", "-"))
    return f"{readable[:70]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def require_unique(paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        key = make_key(path)
        if key in seen:
            raise UserError(f"the files {seen[key]} and {path} get the same key {key}; rename one of them")
        seen[key] = path
