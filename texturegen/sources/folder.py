"""`folder`: any folder of images, flat or with one folder per class."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from texturegen.console import warn
from texturegen.errors import UserError, nearest
from texturegen.sources.base import Item, Listing, Source
from texturegen.sources.files import (
    EXTENSIONS,
    is_image,
    kind_of,
    make_key,
    make_listing,
    names_and_sizes,
    read_image,
    require_unique,
    walk,
    warn_of_lost_images,
)
from texturegen.storage.image import decode_image, original_extension
from texturegen.storage.names import to_text

# Names of folders that hold splits, not classes.
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


class Folder(Source):
    """The images below a folder, at any depth, in the order of their paths.

    The classes are the folders directly under `root`, sorted by name; an empty folder counts too, so that the labels of
    two parallel folders (train/ and val/) agree. An image directly under `root` has label -1. Hidden files and folders
    are skipped, and links are followed unless they lead back to a folder that contains them.

    Parameters
    ----------
    root : the folder, or with a `split` the folder that holds it.
    split : name of a folder in `root`, such as train or val, which is the folder then; None for `root` itself.
    size : side of the images in pixels; None keeps their own sizes.
    listing : of another `Folder` with the same root, to skip the search.

    Attributes
    ----------
    ignored : files without an extension of EXTENSIONS, broken links, and entries that are not regular files.
    """

    name = "folder"
    listing: Listing

    def __init__(self, root: Path, split: str | None, size: int | None, listing: Listing | None = None) -> None:
        self.split, self.size, self.one_size = split, size, size is not None
        if split is not None:
            root = root / split if listing is not None else _find_split(root, split)
        self._root = root
        if listing is not None:
            self.listing, self.classes, self._paths = listing, listing.classes, listing.paths
            return
        if not root.exists():
            raise UserError(f"the image folder {root} does not exist; check --root")
        if not root.is_dir():
            raise UserError(f"{root} is a file; the data set 'folder' needs a folder of images")
        try:
            folders = sorted(e.name for e in os.scandir(root) if kind_of(e) == "folder")
            found = sorted(walk(root))
        except OSError as error:
            raise UserError(f"the image folder {error.filename} cannot be read: {error.strerror}") from error
        self.classes = [to_text(folder) for folder in folders]
        if split is None and len(folders) > 1 and SPLITS.issuperset(name.lower() for name in folders):
            warn(
                f"{root}: its folders {', '.join(folders)} are taken as classes; for the classes below one of "
                f"them, give its own folder, or --split {folders[0]}"
            )
        if len({*self.classes}) < len(folders):
            same = next(name for name in self.classes if self.classes.count(name) > 1)
            raise UserError(f"{root}: the names of several folders are not UTF-8 and read {same}; rename them")
        paths = [path for path, kind in found if is_image(path, kind)]
        images = set(paths)
        self.ignored = [to_text(path) for path, _ in found if path not in images]
        warn_of_lost_images(root, self.ignored)
        if not paths:
            others = f"only {len(self.ignored)} other file(s)" if self.ignored else "it is empty"
            raise UserError(f"no images in {root} ({others}); extensions: {', '.join(sorted(EXTENSIONS))}")
        require_unique(paths)
        try:
            self.listing, self._paths = make_listing(root, paths, self.classes), paths
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}; run the same command again") from error

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        return make_key(self._paths[index])

    def _read(self, index: int) -> Item:
        path = self._paths[index]
        key = make_key(path)
        data, (image, extension) = read_image(key, self._root, self.listing, index, self._decode)
        top, _, rest = path.partition("/")
        label = self.classes.index(to_text(top)) if rest else -1
        original = data if extension else None
        return Item(key, image, label, original, extension or "png", {"path": to_text(path)})

    def _decode(self, data: bytes) -> tuple[np.ndarray, str | None]:
        """Return the image, and the extension under which its file may be kept."""
        image = decode_image(data)
        # A resized image is encoded anew in any case.
        keeps_size = self.size is None or (image.shape[:2] == (self.size, self.size) and self.short_side is None)
        return image, original_extension(data, image) if keeps_size else None

    def _identity(self) -> Any:
        return [self.name, names_and_sizes(self.listing)]


def _find_split(root: Path, split: str) -> Path:
    if "/" in split or split in ("", ".", "..") or not (root / split).is_dir():
        folders = sorted(to_text(e.name) for e in os.scandir(root) if kind_of(e) == "folder") if root.is_dir() else []
        there = f"; its folders are {', '.join(folders[:5])}{', ...' * (len(folders) > 5)}" if folders else ""
        raise UserError(f"there is no folder {split!r} in {root}{nearest(split, folders)}{there}")
    return root / split
