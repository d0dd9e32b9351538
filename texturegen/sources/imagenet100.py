"""ImageNet-100: the photographs of 100 of ImageNet's classes (Russakovsky et al., IJCV 2015), or of any other list.

The list that comes with this module, imagenet100.txt, is that of Tian, Krishnan & Isola (CMC, ECCV 2020), which most
papers on contrastive learning use, SACL (Ge et al. 2021) among them. ImageNet itself must be there already, unpacked
as for torchvision: ROOT/train/WNID/*.JPEG and ROOT/val/WNID/*.JPEG.
"""

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from texturegen.errors import UserError
from texturegen.images import decode_reduced, original_extension
from texturegen.sources.base import Item, Source
from texturegen.sources.folder import (
    EXTENSIONS,
    extension_of,
    list_sizes,
    make_key,
    printable,
    read_image,
    require_unique,
    walk,
)
from texturegen.sources.resize import shrink_short

CLASS_LIST = Path(__file__).with_name("imagenet100.txt")
WNID = re.compile(r"n\d{8}", re.ASCII)
SHORT_SIDE = 256


class ImageNet100(Source):
    """The images of the listed classes, class by class in the order of the list, each class by path.

    A class's label is its place in the list, and `classes` are the WordNet ids. An image whose short side exceeds 256
    pixels is shrunk to that; others keep their pixels and their file. Links, hidden files and `ignored`: see `Folder`.

    root : holds the folders train/ and val/, or is itself the one that `split` names.
    classes : a text file of WordNet ids, one a line; None is ImageNet-100's.
    """

    name = "imagenet100"

    def __init__(self, root: Path, split: str, size: int | None, classes: str | Path | None = None) -> None:
        self.split, self.size, self.one_size = split, size, size is not None
        self.classes = read_class_list(CLASS_LIST if classes is None else Path(classes))
        self._root = _find_split(root, split)
        try:
            self._paths, self._labels, self.ignored = self._list()
        except OSError as error:
            raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from error
        self._keys = [make_key(path) for path in self._paths]
        require_unique(self._keys, self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        return self._keys[index]

    def _read(self, index: int) -> Item:
        key, path = self._keys[index], self._paths[index]
        data, (decoded, divisor) = read_image(key, self._root, path, partial(decode_reduced, short=SHORT_SIDE))
        image = shrink_short(decoded, SHORT_SIDE)
        extension = original_extension(data) if divisor == 1 and image is decoded else None
        original = data if extension else None
        return Item(key, image, self._labels[index], original, extension or "png", {"path": printable(path)})

    def _identity(self) -> Any:
        # A stat per file: copies of ImageNet at other resolutions have the same names, and other sizes.
        return [self.name, self.split, self.classes, list_sizes(self._root, self._paths)]

    def _list(self) -> tuple[list[str], list[int], list[str]]:
        """Return the paths of the images under the split's folder, their labels, and what else lies there."""
        paths: list[str] = []
        labels: list[int] = []
        ignored: list[str] = []
        missing: list[str] = []
        empty: list[str] = []
        for label, wnid in enumerate(self.classes):
            if not (self._root / wnid).is_dir():
                missing.append(wnid)
                continue
            images = []
            for path, kind in sorted(walk(self._root / wnid, f"{wnid}/")):
                if kind == "file" and extension_of(path) in EXTENSIONS:
                    images.append(path)
                else:
                    ignored.append(printable(path))
            paths += images
            labels += [label] * len(images)
            if not images:
                empty.append(wnid)
        for wnids, problem in ((missing, "are not there"), (empty, "hold no images")):
            if wnids:
                few = ", ".join(wnids[:3]) + (", ..." if len(wnids) > 3 else "")
                raise UserError(
                    f"{self.name}: {len(wnids)} of the {len(self.classes)} class folders {problem} in {self._root}: "
                    f"{few}; complete it, or list other classes with --source-option classes=FILE"
                )
        return paths, labels, ignored


def read_class_list(path: Path) -> list[str]:
    """Return the WordNet ids of a file, one a line, in its order; UserError names the first line that is not one."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"the class list {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UserError(f"the class list {path} is not a text file") from None
    seen: dict[str, int] = {}
    for number, text in enumerate(lines, 1):
        wnid = text.strip()
        if not wnid:
            continue
        if not WNID.fullmatch(wnid):
            raise UserError(f"{path}, line {number}: {wnid[:40]!r} is no WordNet id; write one a line, like n01440764")
        if wnid in seen:
            raise UserError(f"{path}, line {number}: {wnid} stands in line {seen[wnid]} already; remove one")
        seen[wnid] = number
    if not seen:
        raise UserError(f"the class list {path} is empty; write one WordNet id a line, like n01440764")
    return list(seen)


def _find_split(root: Path, split: str) -> Path:
    if (root / split).is_dir():
        return root / split
    # Only a folder that bears the split's name may be the split: no other can be told from its opposite.
    if root.is_dir() and Path(os.path.abspath(root)).name == split:
        return root
    raise UserError(f"imagenet100: there is no folder {root / split}; --root is to hold train/ and val/ of ImageNet")
