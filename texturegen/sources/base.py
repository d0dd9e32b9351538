"""What every source is made of: the Item it gives, the Source it is."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Item:
    """One image of a source.

    Attributes
    ----------
    key : its name, in [A-Za-z0-9_-]{1,100}, unique in the source and the same in every run.
    image : uint8 (H, W, 3) RGB.
    label : class number; -1 when there is none.
    data : the encoded file that `image` was decoded from; None when there is no such file.
    ext : how `data` is to be named, lower case and without dot; "png" when data is None.
    meta : whatever else is known, JSON-serialisable.
    members : what else the source's own tar holds of this key, extension -> raw bytes; passed through, never opened.
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
    """What opening a source of files found, so that other processes need not look through its folders again.

    paths : of the images, below the source's folder, in order. classes : the source's.
    """

    paths: Sequence[str]
    classes: list[str]


class Source(ABC):
    """Images by index. Any process may ask for any index in any order: what comes depends on the arguments alone."""

    name: str
    split: str | None
    size: int | None
    classes: list[str]
    one_size: bool = True  # all images are of the same size
    listing: Listing | None = None  # of a source that looks through folders
    ignored: Sequence[str] = ()  # what else lies among its files and is no image of it

    def __getitem__(self, index: int) -> Item:
        """Return item `index`, as a square when the source has a `size`; ImageError when it cannot be decoded."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images; there is no index {index}")
        item = self._read(index)
        if self.size is None:
            return item
        return fit_item(item, self.size)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of what identifies the list of images, found without reading them."""
        return hashlib.sha256(json.dumps(self._identity()).encode()).hexdigest()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the key of item `index` without decoding it."""

    @abstractmethod
    def _read(self, index: int) -> Item:
        """Return item `index` at its own size; the index is known to be in range."""

    @abstractmethod
    def _identity(self) -> Any:
        """Return what `digest` is of: anything JSON can hold."""


def fit_item(item: Item, size: int) -> Item:
    """Return the item with its image as a square of side `size`; the encoded file is dropped if the pixels change."""
    from texturegen.sources.resize import fit_square  # loads OpenCV

    image = fit_square(item.image, size)
    return item if image is item.image else replace(item, image=image, data=None, ext="png")
