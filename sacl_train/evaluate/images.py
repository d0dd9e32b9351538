"""Labelled images to evaluate on: shards, a data set's own files, or a folder of class folders."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacl_train.data.stream import Plan, Stream, default_threads
from texturegen.console import plural, warn
from texturegen.errors import ImageError, UserError
from texturegen.shards import Shards, open_shards
from texturegen.sources import SOURCES, Source, open_source

BATCH = 256
Batch = dict[str, Tensor]


class Images:
    """A set of images of one size, in an order of its own.

    Attributes
    ----------
    place : where they lie, as the user wrote it.
    split : of the data set, or None.
    classes : names by label; empty where the set names none.
    size : (H, W).
    digest : changes when the images do.
    labels : int64 (N,), -1 where there is none.
    textures : int64 (N,), classes of the textures of `shapes`; None for other sets.
    """

    place: str
    split: str | None
    classes: list[str]
    size: tuple[int, int]
    digest: str
    labels: np.ndarray
    textures: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, number: int) -> str:
        """The name of an image."""
        raise NotImplementedError

    def batches(self, indices: np.ndarray | None = None, threads: int | None = None) -> Iterator[Batch]:
        """Up to 256 at a time, in the order of `indices` (all by default): "image" uint8 (n, 3, H, W), "index" int64.

        Damaged images are left out, with a warning.
        """
        raise NotImplementedError


class ShardImages(Images):
    """Those of shards; their textures are not read. More damaged ones than `bad_share`: UserError."""

    def __init__(self, shards: Shards, bad_share: float = 0.01) -> None:
        self.bad_share = bad_share
        self.shards, self.place, self.split = shards, str(shards.directory), shards.build["source"]["split"]
        self.classes, self.size, self.labels = shards.classes, shards.image_size(), shards.labels
        self.digest = shards.digest

    @cached_property
    def textures(self) -> np.ndarray | None:  # type: ignore[override]
        found = [meta.get("texture_label") for meta in self.shards.metas()]
        return None if None in found else np.array(found)

    def key(self, number: int) -> str:
        return self.shards.keys[number]

    def batches(self, indices: np.ndarray | None = None, threads: int | None = None) -> Iterator[Batch]:
        return Stream(self.shards, Plan(BATCH), threads, "none", bad_share=self.bad_share).in_order(indices)


class SourceImages(Images):
    """Those of a data set's files (`texturegen.sources`); all are read once to find their labels."""

    def __init__(self, source: Source, place: str) -> None:
        self.source, self.place, self.split = source, place, source.split
        self.classes, self.digest = source.classes, f"{source.digest}-{source.size}"
        self.damaged: dict[int, str] = {}
        items = list(self._read(np.arange(len(source)), _about, None))
        labels = np.full(len(source), -1)
        for number, (label, _, _) in items:
            labels[number] = label
        self.labels = labels
        if self.damaged:
            first = next(iter(self.damaged.values()))
            warn(f"{place}: {plural(len(self.damaged), 'image')} left out, unreadable; the first is {first}")
        sizes = sorted({size for _, (_, _, size) in items})
        if len(sizes) != 1:
            found = f"images of {len(sizes)} sizes, {sizes[0]} to {sizes[-1]}" if sizes else "there are no images"
            raise UserError(f"{place}: {found}, and a batch needs one size; give one with --size")
        self.size = sizes[0]
        textures = {number: texture for number, (_, texture, _) in items}
        if len(textures) == len(source) and None not in textures.values():
            self.textures = np.array([textures[i] for i in range(len(source))])

    def key(self, number: int) -> str:
        return self.source.key(number)

    def batches(self, indices: np.ndarray | None = None, threads: int | None = None) -> Iterator[Batch]:
        order = np.arange(len(self)) if indices is None else indices
        for at in range(0, len(order), BATCH):
            read = list(self._read(order[at : at + BATCH], lambda item: item.image, threads))
            if read:
                images = torch.from_numpy(np.stack([image for _, image in read])).permute(0, 3, 1, 2)
                yield {"image": images, "index": torch.tensor([number for number, _ in read])}

    def _read(self, order: np.ndarray, take: Callable[[Any], Any], threads: int | None) -> Iterator[tuple[int, Any]]:
        def read(number: int) -> Any:
            try:
                return take(self.source[number])
            except ImageError as error:
                self.damaged[number] = str(error)
                return None

        pending: deque[tuple[int, Future[Any]]] = deque()
        with ThreadPoolExecutor(threads or default_threads()) as pool:
            for number in order.tolist():
                pending.append((number, pool.submit(read, number)))
                if len(pending) > 64:
                    at, future = pending.popleft()
                    if (found := future.result()) is not None:
                        yield at, found
            for at, future in pending:
                if (found := future.result()) is not None:
                    yield at, found


def open_images(place: str | Path, root: str | Path | None = None, size: int | None = None) -> Images:
    """Open shards (a directory of `texturegen build`, or its URL), `DATASET` or `DATASET:SPLIT` of
    `texturegen.sources` with its files under `root`, or a folder of class folders.

    size : side in pixels to which images of the latter two are brought.
    Raises UserError when it is none of these, or its images differ in size.
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


def labelled(images: Images) -> Images:
    """The same, if there are labels; else UserError."""
    if len(images) == 0 or images.labels.max() < 0:
        raise UserError(f"{images.place}: no labelled images here; a probe needs labels")
    return images


def _about(item: Any) -> tuple[int, int | None, tuple[int, int]]:
    return item.label, item.meta.get("texture_label"), item.image.shape[:2]
