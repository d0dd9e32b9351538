"""`stl10` (Coates, Ng and Lee, 2011), read from the official binary files.

The files lie where torchvision keeps them, ROOT/stl10_binary. An image is 3 x 96 x 96 bytes: the colour planes, each in
column-major order. The files are memory-mapped (the unlabelled images take 2.7 GB), so a process reads only the pages
it needs and shares them with other processes.
"""

from pathlib import Path
from typing import Any

import numpy as np

from texturegen.errors import UserError
from texturegen.sources.base import Item, Source
from texturegen.sources.official import Archive, require_files

ARCHIVE = Archive(
    "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    "91f7769df0f17e558f3565bffb0c7dfb",
    "stl10_binary",
)
MD5 = {
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
    "unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}
# From class_names.txt, whose checksum is not published.
CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


class Stl10(Source):
    """STL-10. The split "train+unlabeled" concatenates the two and keeps the keys of both."""

    name = "stl10"
    classes = CLASSES

    def __init__(self, root: Path | None, split: str, size: int | None, download: bool | None, check: bool) -> None:
        self.split, self.size = split, size
        self._files = {file: md5 for file, md5 in MD5.items() if file.split("_")[0] in split.split("+")}
        folder = require_files(self.name, root, ARCHIVE, self._files, download, check)
        self.root = folder.parent
        self._parts = [(part, *_open_part(folder, part)) for part in split.split("+")]

    def __len__(self) -> int:
        return sum(len(images) for _, images, _ in self._parts)

    def key(self, index: int) -> str:
        part, _, _, row = self._locate(index)
        return f"{self.name}-{part}-{row:08d}"

    def _read(self, index: int) -> Item:
        _, images, labels, row = self._locate(index)
        # (colour, column, row) -> (row, column, colour), copied out of the mapped file.
        image = np.ascontiguousarray(images[row].transpose(2, 1, 0))
        return Item(self.key(index), image, -1 if labels is None else int(labels[row]) - 1)

    def _locate(self, index: int) -> tuple[str, np.ndarray, np.ndarray | None, int]:
        row = index
        for part, images, labels in self._parts:
            if row < len(images):
                return part, images, labels, row
            row -= len(images)
        raise IndexError(f"{self.name} has {len(self)} images; there is no index {index}")

    def _identity(self) -> Any:
        return [self.name, self.split, sorted(self._files.items())]


def _open_part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the mapped images uint8 (N, 3, 96, 96) and the labels uint8 (N,), 1 to 10; None for unlabelled images."""
    path = folder / f"{part}_X.bin"
    count, rest = divmod(path.stat().st_size, 3 * 96 * 96)
    if rest or not count:
        raise UserError(f"{path} is not a whole number of images of 3 x 96 x 96 bytes; copy it again")
    images = np.memmap(path, np.uint8, mode="r", shape=(count, 3, 96, 96))
    if part == "unlabeled":
        return images, None
    path = folder / f"{part}_y.bin"
    labels = np.fromfile(path, np.uint8)
    if len(labels) != count or labels.min() < 1 or labels.max() > len(CLASSES):
        raise UserError(f"{path} does not hold {count} labels from 1 to {len(CLASSES)}; copy it again")
    return images, labels
