"""`cifar10` and `cifar100` (Krizhevsky, 2009), read from the official Python files.

The files lie where torchvision keeps them: ROOT/cifar-10-batches-py and ROOT/cifar-100-python.
"""

import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from texturegen.errors import UserError
from texturegen.sources.base import Item, Source
from texturegen.sources.official import Archive, require_files


class Batch(NamedTuple):
    """An official file of images."""

    file: str
    md5: str
    images: int


@dataclass(frozen=True)
class Layout:
    """The official files of a data set, and the keys of the dictionaries in them.

    Attributes
    ----------
    archive : the tar that holds the files.
    batches : split -> files of images.
    meta : name and MD5 of the file of class names.
    labels : key of the labels in a file of images.
    class_names : key of the class names in the file `meta`.
    """

    archive: Archive
    batches: dict[str, tuple[Batch, ...]]
    meta: tuple[str, str]
    labels: str
    class_names: str


CIFAR10 = Layout(
    archive=Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
    ),
    batches={
        "train": (
            Batch("data_batch_1", "c99cafc152244af753f735de768cd75f", 10_000),
            Batch("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec", 10_000),
            Batch("data_batch_3", "54ebc095f3ab1f0389bbae665268c751", 10_000),
            Batch("data_batch_4", "634d18415352ddfa80567beed471001a", 10_000),
            Batch("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb", 10_000),
        ),
        "test": (Batch("test_batch", "40351d587109b95175f43aff81a1287e", 10_000),),
    },
    meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
    labels="labels",
    class_names="label_names",
)

CIFAR100 = Layout(
    archive=Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
    ),
    batches={
        "train": (Batch("train", "16019d7e3df5f24257cddd939b257f8d", 50_000),),
        "test": (Batch("test", "f0ef6b0ae62326f3e7ffdfab6717acfc", 10_000),),
    },
    meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
    labels="fine_labels",
    class_names="fine_label_names",
)


class Cifar(Source):
    """Base of both data sets; a subclass gives the `layout`."""

    layout: Layout

    def __init__(self, root: Path | None, split: str, size: int | None, download: bool | None, check: bool) -> None:
        self.split, self.size = split, size
        self._batches = self.layout.batches[split]
        files = {batch.file: batch.md5 for batch in self._batches} | dict([self.layout.meta])
        self._folder = require_files(self.name, root, self.layout.archive, files, download, check)
        self.root = self._folder.parent
        self.classes = _load_class_names(self._folder / self.layout.meta[0], self.layout.class_names)

    def __len__(self) -> int:
        return sum(batch.images for batch in self._batches)

    def key(self, index: int) -> str:
        return f"{self.name}-{self.split}-{index:08d}"

    def _read(self, index: int) -> Item:
        batch, row = self._locate(index)
        images, labels = _load_batch(self._folder / batch.file, batch.images, self.layout.labels)
        # A row holds the red, the green and the blue plane, 1024 bytes each.
        image = np.ascontiguousarray(images[row].reshape(3, 32, 32).transpose(1, 2, 0))
        return Item(self.key(index), image, labels[row])

    def _locate(self, index: int) -> tuple[Batch, int]:
        row = index
        for batch in self._batches:
            if row < batch.images:
                return batch, row
            row -= batch.images
        raise IndexError(f"{self.name} has {len(self)} images; there is no index {index}")

    def _identity(self) -> Any:
        return [self.name, self.split, [batch.md5 for batch in self._batches]]


class Cifar10(Cifar):
    name = "cifar10"
    layout = CIFAR10


class Cifar100(Cifar):
    name = "cifar100"
    layout = CIFAR100


@lru_cache(maxsize=2)  # a shard lies in one batch or in two adjacent ones
def _load_batch(path: Path, count: int, label_name: str) -> tuple[np.ndarray, list[int]]:
    content = _load_pickle(path)
    images, labels = content.get("data"), content.get(label_name)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != (count, 3072):
        raise UserError(f"{path} does not hold {count} CIFAR images; copy it again")
    if not isinstance(labels, list) or len(labels) != count or not all(isinstance(n, int) for n in labels):
        raise UserError(f"{path} does not hold {count} labels under '{label_name}'; copy it again")
    return images, labels


def _load_class_names(path: Path, name: str) -> list[str]:
    names = _load_pickle(path).get(name)
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f"{path} does not hold class names under '{name}'; copy it again")
    return names


class _Unpickler(pickle.Unpickler):
    """Unpickler of plain containers and NumPy arrays alone: an arbitrary pickle can run any code."""

    # NumPy has moved the function that rebuilds an array; old files name its old module.
    ALLOWED = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return self.ALLOWED[module, name]


def _load_pickle(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            content = _Unpickler(stream, encoding="latin1").load()  # written by Python 2
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise UserError(f"{path} is not a CIFAR file: {error}; copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a CIFAR file: it holds no dictionary; copy it again")
    return content
