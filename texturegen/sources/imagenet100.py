"""`imagenet100`: the photographs of 100 classes of ImageNet (Russakovsky et al., IJCV 2015), or of another class list.

The list shipped as imagenet100.txt is that of Tian, Krishnan and Isola (CMC, ECCV 2020), which most papers on
contrastive learning use, Ge et al. (NeurIPS 2021) among them. ImageNet is not downloaded; it must be unpacked as
torchvision expects it: ROOT/train/WNID/*.JPEG and ROOT/val/WNID/*.JPEG.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from texturegen.errors import MissingError, UserError
from texturegen.sources.base import Item, Listing, Source
from texturegen.sources.files import (
    is_image,
    make_key,
    make_listing,
    names_and_sizes,
    read_image,
    require_unique,
    walk,
    warn_of_lost_images,
)
from texturegen.sources.official import data_folders
from texturegen.sources.resize import shrink_short
from texturegen.storage.image import decode_reduced, original_extension
from texturegen.storage.names import to_text

CLASS_LIST = Path(__file__).with_name("imagenet100.txt")
WNID = re.compile(r"n\d{8}", re.ASCII)
SHORT_SIDE = 256


class ImageNet100(Source):
    """The images of the listed classes, in the order of the list, and by path within a class.

    The label of a class is its position in the list; `classes` holds the WordNet ids. An image whose short side exceeds
    256 pixels is reduced to 256; others keep their pixels and their file. Links, hidden files and `ignored` are treated
    as in `Folder`.

    Parameters
    ----------
    root : holds the folders train/ and val/, or is itself the folder of `split`. None: the folder imagenet/ in one of
        `official.data_folders`.
    split : "train" or "val".
    size : side of the images in pixels; None keeps the aspect ratio.
    classes : a text file of WordNet ids, one per line, or a list of them; None is ImageNet-100.
    listing : of another `ImageNet100` with the same arguments, to skip the search.
    """

    name = "imagenet100"
    listing: Listing

    def __init__(
        self,
        root: Path | None,
        split: str,
        size: int | None,
        classes: str | Path | Sequence[str] | None = None,
        listing: Listing | None = None,
    ) -> None:
        self.split, self.size, self.one_size = split, size, size is not None
        self.root = find_imagenet(split) if root is None else root
        self._root = _find_split(self.name, self.root, split)
        if listing is not None:
            self.listing, self.classes, self._paths = listing, listing.classes, listing.paths
        else:
            self.classes = read_class_list(CLASS_LIST if classes is None else classes)
            try:
                paths, self.ignored = self._list()
                require_unique(paths)
                self.listing, self._paths = make_listing(self._root, paths, self.classes), paths
            except OSError as error:
                raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from error
        self._labels = {wnid: label for label, wnid in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        return make_key(self._paths[index])

    def _read(self, index: int) -> Item:
        path = self._paths[index]
        key, label = make_key(path), self._labels[path.partition("/")[0]]
        data, decoded = read_image(key, self._root, self.listing, index, partial(decode_reduced, short=SHORT_SIDE))
        return make_item(key, path, label, data, decoded)

    def _identity(self) -> Any:
        return [self.name, self.split, self.classes, names_and_sizes(self.listing)]

    def _list(self) -> tuple[list[str], list[str]]:
        """Return the paths of the images in the folder of the split, and of everything else there."""
        paths: list[str] = []
        ignored: list[str] = []
        missing: list[str] = []
        empty: list[str] = []
        for wnid in self.classes:
            if not (self._root / wnid).is_dir():
                missing.append(wnid)
                continue
            images = []
            for path, kind in sorted(walk(self._root / wnid, f"{wnid}/")):
                if is_image(path, kind):
                    images.append(path)
                else:
                    ignored.append(to_text(path))
            paths += images
            if not images:
                empty.append(wnid)
        warn_of_lost_images(self._root, ignored)
        for wnids, problem in ((missing, "are missing"), (empty, "hold no images")):
            if wnids:
                few = ", ".join(wnids[:3]) + (", ..." if len(wnids) > 3 else "")
                raise UserError(
                    f"{self.name}: {len(wnids)} of the {len(self.classes)} class folders {problem} in {self._root}: "
                    f"{few}; complete the folder, or list other classes with --classes FILE"
                )
        return paths, ignored


def make_item(key: str, path: str, label: int, data: bytes, decoded: tuple[np.ndarray, int]) -> Item:
    """Return the item of a file with `data`, of which `decode_reduced` returned `decoded`."""
    full, divisor = decoded
    image = shrink_short(full, SHORT_SIDE)
    extension = original_extension(data, image) if divisor == 1 and image is full else None
    return Item(key, image, label, data if extension else None, extension or "png", {"path": to_text(path)})


def read_class_list(classes: str | Path | Sequence[str]) -> list[str]:
    """Return the WordNet ids in `classes`, a list or a text file with one id per line.

    Raises
    ------
    UserError : an unreadable or empty list; a line that is not a WordNet id, or repeats one.
    """
    if not isinstance(classes, (str, Path, Sequence)):
        raise UserError(f"classes is {classes!r}; it must be a text file of WordNet ids, or a list of them")
    if isinstance(classes, (str, Path)):
        path = classes
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise UserError(f"the class list {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise UserError(f"the class list {path} is not a text file") from None
    else:
        path, lines = "the class list", [str(wnid) for wnid in classes]
    seen: dict[str, int] = {}
    for number, text in enumerate(lines, 1):
        wnid = text.strip()
        if not wnid:
            continue
        if not WNID.fullmatch(wnid):
            raise UserError(
                f"{path}, line {number}: {wnid[:40]!r} is not a WordNet id; write one per line, such as n01440764"
            )
        if wnid in seen:
            raise UserError(f"{path}, line {number}: {wnid} is already in line {seen[wnid]}; remove one")
        seen[wnid] = number
    if not seen:
        raise UserError(f"the class list {path} is empty; write one WordNet id per line, such as n01440764")
    return list(seen)


def find_imagenet(split: str) -> Path:
    """Return the folder imagenet/ that holds a split, in one of `official.data_folders`."""
    places = [folder / "imagenet" for folder in data_folders()]
    for place in places:
        if (place / split).is_dir():
            return place
    raise MissingError(
        f"imagenet100: there is no folder {split}/ in {', '.join(map(str, places))}; ImageNet needs an account, so "
        "fetch ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org, unpack them to "
        "DIR/train/WNID/*.JPEG and DIR/val/WNID/*.JPEG, and give DIR with --root"
    )


def _find_split(name: str, root: Path, split: str) -> Path:
    if (root / split).is_dir():
        return root / split
    # Only the folder's name tells train from val, so no other folder is accepted.
    if root.is_dir() and Path(os.path.abspath(root)).name == split:
        return root
    raise UserError(f"{name}: there is no folder {root / split}; --root must hold train/ and val/ of ImageNet")
