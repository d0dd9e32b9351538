"""`folder`: any folder of images, flat or with one folder per class."""

import os
from pathlib import Path
from typing import Any

from texturegen.errors import UserError
from texturegen.sources.base import Item, Listing, Source
from texturegen.sources.files import (
    EXTENSIONS,
    is_image,
    kind_of,
    list_sizes,
    make_key,
    read_image,
    require_unique,
    walk,
)
from texturegen.storage.image import decode_image, original_extension
from texturegen.storage.names import to_text


class Folder(Source):
    """The images below a folder, at any depth, in the order of their paths.

    The classes are the folders directly under `root`, sorted by name; an empty folder counts too, so that the labels of
    two parallel folders (train/ and val/) agree. An image directly under `root` has label -1. Hidden files and folders
    are skipped, and links are followed unless they lead back to a folder that contains them.

    Parameters
    ----------
    root : the folder.
    split : None; a folder has no splits.
    size : side of the images in pixels; None keeps their own sizes.
    listing : of another `Folder` with the same root, to skip the search.

    Attributes
    ----------
    ignored : files without an extension of EXTENSIONS, broken links, and entries that are not regular files.
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
        paths = [path for path, kind in found if is_image(path, kind)]
        images = set(paths)
        self.ignored = [to_text(path) for path, _ in found if path not in images]
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
        return Item(key, image, label, original, extension or "png", {"path": to_text(path)})

    def _identity(self) -> Any:
        return [self.name, list_sizes(self._root, self._paths)]
