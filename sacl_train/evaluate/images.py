"""Labelled images to evaluate on: shards, a data set's own files, or a folder of class folders."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sacl_train.data.stream import Plan, Stream, default_threads
from texturegen.console import plural, warn
from texturegen.errors import ImageError, UserError
from texturegen.shards import Shards, open_shards
from texturegen.sources import SOURCES, Item, Source, open_source

BATCH = 256  # images per batch
MAX_PENDING = 64  # images read ahead

Batch = dict[str, Tensor]
T = TypeVar("T")


class Images(Protocol):
    """A set of images of one size.

    Attributes
    ----------
    place : str
        Location, as given by the user.
    split : str or None
        Split of the data set.
    classes : list of str
        Class names, in the order of the labels; empty if the set has none.
    size : tuple of int
        (H, W) in pixels.
    digest : str
        Changes when the images change.
    labels : ndarray int64 (N,)
        Class of each image; -1 for an image without a label.
    textures : ndarray int64 (N,) or None
        Texture class of each image; only the sets `shapes` have it.
    """

    place: str
    split: str | None
    classes: list[str]
    size: tuple[int, int]
    digest: str
    labels: np.ndarray

    @property
    def textures(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Return the key of an image."""
        ...

    def batches(self, indices: np.ndarray | None = None, threads: int | None = None) -> Iterator[Batch]:
        """Yield batches of up to 256 images: "image" uint8 (n, 3, H, W) and "index" int64 (n,).

        Images are in the order of `indices`; by default all are read. Damaged images are skipped with a warning.
        """
        ...


class ShardImages:
    """The images of shards; see `Images`. Textures of the shards are not read.

    Parameters
    ----------
    shards : Shards
        Opened shards.
    bad_share : float
        Fraction of damaged images, 0..1, above which reading raises UserError.
    """

    place: str
    split: str | None

    def __init__(self, shards: Shards, bad_share: float = 0.01) -> None:
        self.bad_share = bad_share
        self.shards, self.place, self.split = shards, str(shards.directory), shards.build["source"]["split"]
        self.classes, self.size, self.labels = shards.classes, shards.image_size(), shards.labels
        self.digest = shards.digest

    @cached_property
    def textures(self) -> np.ndarray | None:
        labels = [meta.get("texture_label") for meta in self.shards.metas()]
        return None if None in labels else np.array(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        return self.shards.keys[index]

    def batches(self, indices: np.ndarray | None = None, threads: int | None = None) -> Iterator[Batch]:
        return Stream(self.shards, Plan(BATCH), threads, "none", bad_share=self.bad_share).in_order(indices)


class TextureImages(ShardImages):
    """The textures of shards as images without labels: the first texture of each; see `ShardImages`."""

    def __init__(self, shards: Shards, bad_share: float = 0.01) -> None:
        super().__init__(shards, bad_share)
        self.split, self.digest = f"textures of {self.split or 'images'}", f"{shards.digest}-textures"
        self.labels, self.classes = np.full(len(shards), -1), []

    @property
    def textures(self) -> None:
        return None

    def batches(self, indices: np.ndarray | None = None, threads: int | None = None) -> Iterator[Batch]:
        plan = Plan(BATCH, textures="all")
        for batch in Stream(self.shards, plan, threads, "none", bad_share=self.bad_share).in_order(indices):
            yield {"image": batch["texture"][:, 0], "index": batch["index"]}


class SourceImages:
    """The images of a data set's own files; see `Images`. The constructor reads all of them for labels and sizes.

    Parameters
    ----------
    source : Source
        A source of `texturegen.sources`.
    place : str
        Location, for messages.

    Raises
    ------
    UserError
        If the images differ in size, or there are none.
    """

    split: str | None

    def __init__(self, source: Source, place: str) -> None:
        self.source, self.place, self.split = source, place, source.split
        self.classes, self.digest = source.classes, f"{source.digest}-{source.size}"
        self.damaged: dict[int, str] = {}
        items = list(self._read(np.arange(len(source)), _describe, None))
        labels = np.full(len(source), -1)
        for index, (label, _, _) in items:
            labels[index] = label
        self.labels = labels
        if self.damaged:
            first = next(iter(self.damaged.values()))
            warn(f"{place}: skipped {plural(len(self.damaged), 'unreadable image')}; the first is {first}")
        sizes = sorted({size for _, (_, _, size) in items})
        if not sizes:
            raise UserError(f"{place}: no readable images; check the location and the files")
        if len(sizes) > 1:
            raise UserError(
                f"{place}: images of {len(sizes)} sizes, {sizes[0]} to {sizes[-1]}, but a batch needs one size; resize "
                "them with --size"
            )
        self.size = sizes[0]
        self.textures: np.ndarray | None = None
        textures = {index: texture for index, (_, texture, _) in items}
        if len(textures) == len(source) and None not in textures.values():
            self.textures = np.array([textures[i] for i in range(len(source))])

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def batches(self, indices: np.ndarray | None = None, threads: int | None = None) -> Iterator[Batch]:
        order = np.arange(len(self)) if indices is None else indices
        for start in range(0, len(order), BATCH):
            read = list(self._read(order[start : start + BATCH], lambda item: item.image, threads))
            if read:
                images = torch.from_numpy(np.stack([image for _, image in read])).permute(0, 3, 1, 2)
                yield {"image": images, "index": torch.tensor([index for index, _ in read])}

    def _read(self, order: np.ndarray, extract: Callable[[Item], T], threads: int | None) -> Iterator[tuple[int, T]]:
        """Yield (index, extract(item)) in the order of `order`; record damaged images in `damaged` instead."""

        def read(index: int) -> T | None:
            try:
                return extract(self.source[index])
            except ImageError as error:
                self.damaged[index] = str(error)
                return None

        pending: deque[tuple[int, Future[T | None]]] = deque()
        with ThreadPoolExecutor(threads or default_threads()) as pool:
            for index in order.tolist():
                pending.append((index, pool.submit(read, index)))
                if len(pending) > MAX_PENDING:
                    earliest, future = pending.popleft()
                    if (found := future.result()) is not None:
                        yield earliest, found
            for earliest, future in pending:
                if (found := future.result()) is not None:
                    yield earliest, found


def open_images(place: str | Path, root: str | Path | None = None, size: int | None = None) -> Images:
    """Open a set of images.

    Parameters
    ----------
    place : str or Path
        Shards (a directory of `texturegen build`, or its URL), `DATASET` or `DATASET:SPLIT` of `texturegen.sources`,
        or a folder of class folders.
    root : str, Path or None
        Directory of the data set's files.
    size : int or None
        Resize images to this side in pixels; ignored for shards.

    Raises
    ------
    UserError
        If nothing is found at `place`, or the images differ in size.

    Examples
    --------
    >>> images = open_images("shards")
    >>> len(images), images.size, images.classes[:2]
    (64, (32, 32), ['disc', 'square'])
    """
    text = str(place)
    if "://" in text or (Path(text) / "build.json").is_file():
        return ShardImages(open_shards(text if "://" in text else Path(text)))
    name, _, split = text.partition(":")
    if name in SOURCES and not Path(text).exists():
        return SourceImages(open_source(name, root, split or None, size), text)
    if Path(text).is_dir() and any(child.is_dir() for child in Path(text).iterdir()):
        return SourceImages(open_source("folder", text, size=size), text)
    raise UserError(
        f"{text}: neither shards of `texturegen build`, nor a folder of class folders, nor a data set "
        f"({', '.join(SOURCES)}, with :SPLIT and --root)"
    )


def require_labels(images: Images) -> Images:
    """Return `images`; raise UserError if none of them has a label."""
    if len(images) == 0 or images.labels.max() < 0:
        raise UserError(f"{images.place}: no labelled images; use a set with labels")
    return images


def _describe(item: Item) -> tuple[int, int | None, tuple[int, int]]:
    """Return an item's label, texture class and (H, W)."""
    height, width = item.image.shape[:2]
    return item.label, item.meta.get("texture_label"), (height, width)
