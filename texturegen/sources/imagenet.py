"""`imagenet`: all of ImageNet (ILSVRC 2012; Russakovsky et al., IJCV 2015), from its folders or its official tars.

The tars are read where they lie: ILSVRC2012_img_train.tar is a tar of one tar per class, and
ILSVRC2012_img_val.tar holds images whose classes are in ILSVRC2012_devkit_t12.tar.gz. Folders and tars give the same
images, keys and labels, so they give the same shards.
"""

import io
import os
import re
import tarfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, overload

import pyarrow as pa

from texturegen.errors import DamagedError, ImageError, MissingError, SourceLost, UserError
from texturegen.sources.base import Item, Listing
from texturegen.sources.files import is_image, make_key, require_unique, retry
from texturegen.sources.imagenet100 import SHORT_SIDE, WNID, ImageNet100, make_item
from texturegen.sources.official import data_folders
from texturegen.sources.patterns import File, buffered, find_files, has_changed
from texturegen.sources.tar_index import walk_tar
from texturegen.sources.tar_listing import TarListing
from texturegen.storage.image import decode_reduced
from texturegen.storage.names import printable
from texturegen.storage.ranges import Read, open_reader

TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_VAL_NAME = re.compile(r"ILSVRC2012_val_([0-9]{8})\.JPEG")


class ImageNet(ImageNet100):
    """All images of ImageNet, by class and by name within a class.

    The label of a class is its position among the sorted WordNet ids, as in torchvision. Images are treated as in
    `ImageNet100`.

    Parameters
    ----------
    root : holds the folders train/ and val/ (as torchvision makes them) or the official tars. None: the folder
        imagenet/ in one of `official.data_folders`.
    split : "train" or "val".
    size : side of the images in pixels; None keeps the aspect ratio.
    listing : of another `ImageNet` with the same arguments, to skip the search: `ImageNet.listing` for folders,
        `ImageNet.index` for tars.
    """

    name = "imagenet"

    def __init__(
        self, root: Path | None, split: str, size: int | None, listing: Listing | TarListing | None = None
    ) -> None:
        root = find_place(split) if root is None else root
        tar = root / TARS[split]
        # A build that began with the tars continues with them, even if they are unpacked meanwhile.
        if not isinstance(listing, TarListing) and ((root / split).is_dir() or not tar.is_file()):
            super().__init__(root, split, size, None if listing else _class_folders(root, split), listing)
            return
        self.split, self.size, self.one_size, self.root = split, size, size is not None, root
        if isinstance(listing, TarListing):
            self.index = listing
        else:
            try:
                self.index = list_train_tar(tar) if split == "train" else list_val_tar(tar, root / DEVKIT)
            except OSError as error:
                raise UserError(f"{tar} cannot be read: {error.strerror or error}") from error
        self.classes = self.index.classes or []
        self._labels = {wnid: label for label, wnid in enumerate(self.classes)}
        self._file = self.index.files[0]._replace(path=str(tar))
        self._paths = _Paths(self.index)
        self.ignored = [printable(name) for name in self.index.ignored[0]]

    def _read(self, index: int) -> Item:
        if self.index is None:
            return super()._read(index)
        path = self._paths[index]
        if has_changed(self._file, self.index.listed_at):
            raise SourceLost(f"{self._file.path} changed after the build began; restore it")
        (member,) = self.index.members(index)
        read = open_reader(self._file.path)
        try:
            data = retry(lambda: read(member.offset, member.offset + member.size))
        except OSError as error:
            raise SourceLost(f"{self._file.path} can no longer be read: {error.strerror or error}") from error
        key = make_key(path)
        try:
            return make_item(
                key, path, self._labels[path.partition("/")[0]], data, decode_reduced(data, short=SHORT_SIDE)
            )
        except UserError as error:
            raise ImageError(key, f"{path}: {error}") from error

    def _identity(self) -> object:
        if self.index is None:
            return super()._identity()
        sizes = self.index.table["sizes"].combine_chunks().values.to_pylist()
        files = [[path, size] for path, size in zip(self._paths, sizes, strict=True)]
        return [self.name, self.split, self.classes, files]


class _Paths(Sequence[str]):
    """The paths of the images of a listing: WNID/NAME.JPEG."""

    def __init__(self, index: TarListing) -> None:
        self._index = index

    def __len__(self) -> int:
        return self._index.ends[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._index.key(i) for i in range(*index.indices(len(self)))]
        return self._index.key(index)


class _Found(NamedTuple):
    path: str
    offset: int
    size: int


def list_train_tar(tar: Path) -> TarListing:
    """Index ILSVRC2012_img_train.tar, whose members are WNID.tar, by its headers.

    Raises
    ------
    UserError : the tar is damaged, or another one.
    """
    listed_at = time.time_ns()
    (file,) = find_files(str(tar), ".tar")
    read, found, ignored = open_reader(file.path), [], []
    for outer in walk_tar(tar.name, buffered(read, file.size, 2**13), file.size):
        wnid = outer.name.removeprefix("./").removesuffix(".tar")
        if outer.kind not in _REGULAR or not WNID.fullmatch(wnid):
            ignored.append(outer.name)
            continue
        inside = partial(_read_inside, read, outer.offset)
        for inner in walk_tar(f"{tar.name}: {outer.name}", buffered(inside, outer.size, 2**13), outer.size):
            name = inner.name.removeprefix("./").removeprefix(f"{wnid}/")  # with its folder in a tar made anew
            if _is_image(name, inner.kind):
                found.append(_Found(f"{wnid}/{name}", outer.offset + inner.offset, inner.size))
            elif inner.kind != tarfile.DIRTYPE:
                ignored.append(f"{wnid}/{name}")
    return _make_listing(file, found, ignored, listed_at)


def list_val_tar(tar: Path, devkit: Path) -> TarListing:
    """Index ILSVRC2012_img_val.tar by its headers; the classes of its images are in the development kit.

    Raises
    ------
    UserError : a tar is missing, damaged, or another one.
    """
    listed_at = time.time_ns()
    (file,) = find_files(str(tar), ".tar")
    wnids = read_devkit(devkit)
    found, ignored = [], []
    for member in walk_tar(tar.name, buffered(open_reader(file.path), file.size, 2**13), file.size):
        name = member.name.removeprefix("./")
        number = int(match[1]) if (match := _VAL_NAME.fullmatch(name)) else 0
        if member.kind not in _REGULAR or not 1 <= number <= len(wnids):
            ignored.append(member.name)
            continue
        found.append(_Found(f"{wnids[number - 1]}/{name}", member.offset, member.size))
    return _make_listing(file, found, ignored, listed_at)


def read_devkit(devkit: Path) -> list[str]:
    """Return the WordNet id of each validation image, by its number from 1.

    Raises
    ------
    MissingError : the file is missing.
    DamagedError : it is not the development kit.
    """
    if not devkit.is_file():
        raise MissingError(f"imagenet: the classes of the validation images need {devkit}, from https://image-net.org")
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        with tarfile.open(devkit) as tar:
            folder = DEVKIT.removesuffix(".tar.gz") + "/data"
            table, numbers = (
                tar.extractfile(f"{folder}/{name}").read()  # type: ignore[union-attr]
                for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
            )
        synsets = loadmat(io.BytesIO(table), squeeze_me=True)["synsets"]
        # The synsets above the classes have numbers over 1000, which no image has.
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        return [wnids[int(number)] for number in numbers.split()]
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError, IndexError, TypeError, AttributeError):
        raise DamagedError(f"{devkit}: not ImageNet's development kit of 2012; copy it again") from None


def find_place(split: str) -> Path:
    """Return the folder imagenet/ that holds a split or its tar, in one of `official.data_folders`."""
    places = [folder / "imagenet" for folder in data_folders()]
    for place in places:
        if (place / split).is_dir() or (place / TARS[split]).is_file():
            return place
    raise MissingError(
        f"imagenet: neither {split}/ nor {TARS[split]} is in {', '.join(map(str, places))}; ImageNet needs an account, "
        f"so fetch {TARS['train']}, {TARS['val']} and {DEVKIT} from https://image-net.org, and give their folder with "
        "--root; they need not be unpacked"
    )


def _class_folders(root: Path, split: str) -> list[str]:
    """Return the WordNet ids that have a folder, sorted."""
    folder = root / split
    if not folder.is_dir():
        if not root.is_dir() or Path(os.path.abspath(root)).name != split:
            raise UserError(
                f"imagenet: neither {folder}/ nor {root / TARS[split]} exists; --root must hold one of them"
            )
        folder = root
    found = sorted(entry.name for entry in os.scandir(folder) if WNID.fullmatch(entry.name) and entry.is_dir())
    if not found:
        raise UserError(f"imagenet: there are no class folders such as n01440764 in {folder}")
    return found


def _is_image(name: str, kind: bytes) -> bool:
    """Return True for a file that would be an image of the class in a folder too."""
    return kind in _REGULAR and not name.startswith(".") and is_image(name, "file")


def _make_listing(file: File, found: list[_Found], ignored: list[str], listed_at: int) -> TarListing:
    if not found:
        raise UserError(f"{file.path}: there are no images of ImageNet in it")
    found.sort()
    require_unique([image.path for image in found])
    ones = pa.array(range(len(found) + 1), pa.int64())
    table = pa.table(
        {
            "key": pa.array([image.path.encode("utf-8", "surrogateescape") for image in found], pa.large_binary()),
            "exts": pa.LargeListArray.from_arrays(ones, pa.array(["jpeg"] * len(found), pa.string())),
            "offsets": pa.LargeListArray.from_arrays(ones, pa.array([image.offset for image in found], pa.int64())),
            "sizes": pa.LargeListArray.from_arrays(ones, pa.array([image.size for image in found], pa.int64())),
        }
    )
    classes = sorted({image.path.partition("/")[0] for image in found})
    return TarListing(file.path, [file], [""], [""], [len(found)], [ignored], listed_at, table, classes)


def _read_inside(read: Read, start: int, begin: int, end: int) -> bytes:
    """Return bytes of a tar inside a tar, whose data begin at `start`."""
    return read(start + begin, start + end)
