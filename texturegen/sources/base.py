"""The interface of a data set: `Source`, and the `Item` it returns for an index."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from texturegen.sources.tar_listing import TarListing


@dataclass(frozen=True)
class Item:
    """One image of a source.

    Attributes
    ----------
    key : name of the image: segments of [A-Za-z0-9_-] with "/" between them, at most 100 characters; unique within the
        source and the same in every run.
    image : uint8 (H, W, 3), RGB.
    label : index of the class; -1 for none.
    data : the encoded file that `image` was decoded from; None if there is none.
    ext : extension of `data`, in lower case and without a dot; "png" if `data` is None.
    meta : anything else that is known, serialisable as JSON.
    members : the other files of this key in the source's own tar, extension -> bytes; copied, never decoded.
    """

    key: str
    image: np.ndarray
    label: int = -1
    data: bytes | None = None
    ext: str = "png"
    meta: dict[str, Any] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """The images that a source found below its folder. Passed to other processes, it saves them the search.

    Attributes
    ----------
    paths : paths of the images in order, relative to the source's folder.
    classes : names of the classes, by label.
    sizes : bytes of each file.
    times : time of the last modification of each file, in ns since 1970; empty if it is not to be compared.
    listed_at : when the files were listed, in ns since 1970.
    """

    paths: Sequence[str]
    classes: list[str]
    sizes: Sequence[int]
    times: Sequence[int] = ()
    listed_at: int = 0

    def find_change(self, index: int, found: os.stat_result) -> str | None:
        """Return how file `index` differs from the listed one; None if it does not.

        A file whose time differs but lies before the listing is a copy, such as that of another machine, and passes.
        """
        size = self.sizes[index]
        if found.st_size != size:
            return f"had {size} bytes when the images were listed and has {found.st_size} now"
        if len(self.times) and self.listed_at < modified_at(found) != self.times[index]:
            return "was rewritten after the images were listed"
        return None


def modified_at(found: os.stat_result) -> int:
    """Return the time of a file's last modification in ns since 1970, as int64.

    A file system can hold years after 2262, where that ends; a broken clock or archive writes them.
    """
    return min(found.st_mtime_ns, 2**63 - 1)


class Source(ABC):
    """A data set whose images are read by index.

    `source[i]` depends on the constructor's arguments and on i alone, so any process may read any index in any order.

    A subclass sets `name`, `split`, `size` and `classes`, and implements `__len__`, `key`, `_read` and `_identity`.

    Attributes
    ----------
    name : key of the source in `SOURCES`.
    split : name of the split; None if the source has none.
    size : side of the images in pixels; None if they keep their own sizes.
    short_side : length to which short sides are scaled before the crop to `size`; None: `size`.
    classes : names of the classes, by label.
    one_size : whether all images have the same size.
    listing : the images found below the source's folder; None if it searches no folder.
    index : the samples found in the source's tars; None if it reads no tars.
    ignored : names of the files in the source's folder that are not images of it.
    root : folder in which a data set was found that can be opened without one; None for other sources.
    """

    name: str
    split: str | None
    size: int | None
    short_side: int | None = None
    classes: list[str]
    one_size: bool = True
    listing: Listing | None = None
    index: "TarListing | None" = None
    ignored: Sequence[str] = ()
    root: Path | None = None

    def __getitem__(self, index: int) -> Item:
        """Return item `index`, its image a square if the source has a `size`.

        Raises
        ------
        IndexError : an index below 0, or not below len(self).
        ImageError : this image cannot be decoded.
        SourceLost : the files of the data set cannot be reached any more.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images; there is no index {index}")
        item = self._read(index)
        if self.size is None:
            return item
        return fit_item(item, self.size, self.short_side)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the list of images: their names and sizes, or checksums; no image is read."""
        return hashlib.sha256(json.dumps(self._identity()).encode()).hexdigest()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the key of item `index` without decoding it."""

    @abstractmethod
    def _read(self, index: int) -> Item:
        """Return item `index` at its own size; `index` is in range."""

    @abstractmethod
    def _identity(self) -> Any:
        """Return what `digest` hashes, serialisable as JSON."""


def fit_item(item: Item, size: int, short_side: int | None = None) -> Item:
    """Return the item with its image brought to size x size (`fit_square`), without its file if the pixels change."""
    from texturegen.sources.resize import fit_square  # loads OpenCV

    image = fit_square(item.image, size, short_side)
    return item if image is item.image else replace(item, image=image, data=None, ext="png")
