"""Existing WebDataset tars (github.com/webdataset/webdataset), to add textures to a data set that is in shards already.

A sample is the adjacent members KEY.EXT of a tar. The headers are read once, when the source is opened, into a table of
places; after that a sample is one read of its own bytes, from a local file or by a range request.
"""

import re
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from texturegen.errors import ImageError, SourceLost, UserError
from texturegen.sources.base import Item, Source
from texturegen.sources.files import make_key, retry
from texturegen.sources.patterns import MAX_REQUESTS, File, buffered, find_files, has_changed
from texturegen.sources.tar_index import NOT_FOLLOWED, TarIndex, index_tar
from texturegen.storage.image import decode_image, original_extension
from texturegen.storage.names import key_pattern, printable, to_text
from texturegen.storage.ranges import is_url, open_reader

IMAGES = ("png", "jpg", "jpeg", "webp")
RESERVED_IMAGES = ("png", "jpg", "webp")  # extensions of the image in shards, which no other member can have
KEY = key_pattern(100)
SHORT_KEY = key_pattern(80)  # as in shards
MAX_SAMPLE = 2**29  # bytes of a sample, which is held in memory
# Bytes per read while indexing. A remote store takes as long to answer as to send 4 MB; a disk reads pages.
REMOTE_CHUNK, LOCAL_CHUNK = 2**22, 2**13
_LABEL = re.compile(rb"\s*(-1|[0-9]{1,9})\s*")


class WebDataset(Source):
    """The samples of WebDataset tars, in the order of the tars and of the samples in them, under their own keys.

    The label is the number in KEY.cls, or -1 without one. All other members go with the image unchanged, as
    `Item.members`; extensions become lower case, as in WebDataset's readers. Another image of the sample, such as a
    mask, becomes `other.EXT`, because in shards KEY.EXT is the image. A sample raises ImageError if its key could be a
    path (`..`, a leading "/") or is not plain ASCII, or if one of its members is a link.

    Parameters
    ----------
    root : a folder of *.tar, one tar, or a pattern or URL of some: DIR/{000..003}.tar, s3://bucket/train-*.tar.
    split : None; the tars are one split.
    size : side of the images in pixels; None keeps theirs.
    image : extension of the member that is the image; None is the first of png, jpg, jpeg, webp that a sample has.
    classes : a text file of class names, one per line, in the order of the labels, or a list of them.
    rename_keys : give each key that shards do not allow a new one, of its readable characters and a hash of all of it.

    Attributes
    ----------
    ignored : the members that belong to no sample, as "TAR: NAME".
    """

    name = "webdataset"

    def __init__(
        self,
        root: str,
        split: None,
        size: int | None,
        image: str | None = None,
        classes: str | Path | Sequence[str] | None = None,
        rename_keys: bool = False,
    ) -> None:
        if not isinstance(rename_keys, bool):
            raise UserError(f"rename_keys is {rename_keys!r}; it must be true or false")
        self.split, self.size, self.one_size = split, size, size is not None
        self._rename_keys, self._is_image_chosen = rename_keys, image is not None
        self._images = IMAGES if image is None else (image.lower().removeprefix("."),)
        if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", self._images[0]) or self._images[0] == "cls":
            raise UserError(f"'{image}' cannot be the extension of an image; use for example image=left.png")
        self.classes = [] if classes is None else _read_names(classes)
        self._opened_at = time.time_ns()
        self._files = find_files(root, ".tar")
        self._tars = _index(tuple(self._files))
        self._ends = list(accumulate(len(tar.keys) for tar in self._tars))
        if not len(self):
            raise UserError(f"{root}: there are no samples (members KEY.EXT) in the {len(self._files)} tar(s)")
        self.ignored = [
            f"{_tar_name(file)}: {name}"
            for file, tar in zip(self._files, self._tars, strict=True)
            for name in tar.ignored
        ]

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, index: int) -> str:
        _, tar, row = self._locate(index)
        return self._key(tar.keys[row])

    def _read(self, index: int) -> Item:
        file, tar, row = self._locate(index)
        key = self._key(tar.keys[row])

        def refuse(reason: str) -> ImageError:
            return ImageError(key, f"{_tar_name(file)}: {reason}")

        if not KEY.fullmatch(key):
            raise refuse(
                f"the key {printable(tar.keys[row])} is not allowed in shards, where keys are letters, digits, _ and - "
                "with / between them; give such samples new keys with --source-option rename_keys=true"
            )
        if has_changed(file, self._opened_at):
            raise SourceLost(
                f"{to_text(file.path)} changed after the build began; restore it and run the same command again, or "
                "build into another directory"
            )
        members = _read_members(file, tar, row, refuse)
        chosen = next((ext for ext in self._images if ext in members), None)
        if chosen is None:
            there = ", ".join(map(printable, members))
            raise refuse(
                f"has no member {' or '.join(self._images)}; choose among {there} with --source-option image=EXT"
            )
        data = members.pop(chosen)
        for ext in [ext for ext in RESERVED_IMAGES if ext in members]:
            if not self._is_image_chosen:
                raise refuse(
                    f"has several images; choose {chosen} or {ext} with --source-option image=EXT, and the other is "
                    "kept as other.EXT"
                )
            if f"other.{ext}" in members:
                raise refuse(
                    f"has members {ext} and other.{ext}, which get the same name in shards; rename one of them"
                )
            members[f"other.{ext}"] = members.pop(ext)
        label = self._read_label(members.pop("cls", b"-1"), refuse)
        try:
            image = decode_image(data)
        except UserError as error:
            raise refuse(f"{chosen}: {error}") from error
        extension = original_extension(data, image)
        original = data if extension else None
        return Item(key, image, label, original, extension or "png", {"tar": _tar_name(file)}, members)

    def _read_label(self, text: bytes, refuse: Callable[[str], ImageError]) -> int:
        match = _LABEL.fullmatch(text)
        if not match:
            raise refuse(f"cls holds {ascii(text[:40])[1:]}, which is not a class number")
        label = int(match[1])
        if self.classes and label >= len(self.classes):
            raise refuse(f"cls is {label}, but there are {len(self.classes)} class names")
        return label

    def _key(self, key: str) -> str:
        if self._rename_keys and not SHORT_KEY.fullmatch(key):
            return make_key(key)
        return _safe(key)

    def _locate(self, index: int) -> tuple[File, TarIndex, int]:
        number = bisect_right(self._ends, index)
        start = self._ends[number - 1] if number else 0
        return self._files[number], self._tars[number], index - start

    def _identity(self) -> Any:
        tars = [[_tar_name(f), f.size, tar.digest] for f, tar in zip(self._files, self._tars, strict=True)]
        renamed = ["rename_keys"] if self._rename_keys else []  # absent by default: digests of old builds stay valid
        return [self.name, list(self._images), self.classes, tars, *renamed]


@lru_cache(maxsize=2)  # per process, because a worker opens the source again for each shard
def _index(files: tuple[File, ...]) -> tuple[TarIndex, ...]:
    """Index all tars; UserError if one is damaged, or two have the same key."""
    if any(is_url(file.path) for file in files):
        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            tars = tuple(pool.map(_index_one, files))
    else:
        tars = tuple(map(_index_one, files))
    seen: set[str] = set()
    for number, tar in enumerate(tars):
        repeated = seen.intersection(tar.keys)
        if repeated:
            key = min(repeated)
            first = next(file for file, other in zip(files, tars[:number], strict=False) if key in other.keys)
            raise UserError(
                f"the key {printable(key)} is in {first.path} and {files[number].path}; keys must be unique"
            )
        seen.update(tar.keys)
    return tars


def _index_one(file: File) -> TarIndex:
    read = buffered(open_reader(file.path), file.size, REMOTE_CHUNK if is_url(file.path) else LOCAL_CHUNK)
    try:
        return index_tar(to_text(file.path), read, file.size)
    except OSError as error:
        raise UserError(f"{to_text(file.path)} cannot be read: {error.strerror or error}") from error


def _read_members(file: File, tar: TarIndex, row: int, refuse: Callable[[str], ImageError]) -> dict[str, bytes]:
    """Return extension -> bytes of all members of a sample, by one read if they lie together."""
    rows = range(tar.first[row], tar.first[row + 1])
    for i in rows:
        if tar.offsets[i] == NOT_FOLLOWED:
            raise refuse(f"the member {printable(tar.exts[i])} is a link, a device or a pipe, which are not followed")
    if sum(tar.sizes[i] for i in rows) > MAX_SAMPLE:
        raise refuse(f"the sample exceeds the limit of {MAX_SAMPLE // 2**20} MB")
    read = open_reader(file.path)
    start, end = tar.offsets[rows[0]], tar.offsets[rows[-1]] + tar.sizes[rows[-1]]
    if end - start <= MAX_SAMPLE:
        read = buffered(read, file.size, end - start)
    try:
        members = retry(lambda: {tar.exts[i]: read(tar.offsets[i], tar.offsets[i] + tar.sizes[i]) for i in rows})
    except OSError as error:
        raise SourceLost(f"{to_text(file.path)} can no longer be read: {error.strerror or error}") from error
    if any(len(members[tar.exts[i]]) != tar.sizes[i] for i in rows):
        raise refuse("the tar is shorter than when it was indexed")
    return members


def _read_names(classes: str | Path | Sequence[str]) -> list[str]:
    if not isinstance(classes, (str, Path)):
        return [to_text(str(name)) for name in classes]
    path = Path(classes)
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(f"the class names {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UserError(f"the class names {path} are not UTF-8 text; save the file as UTF-8") from None
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(f"{path}, line {number}: is empty; write one class name per line, in label order")
    if not names:
        raise UserError(f"the class names {path} are empty; write one per line, in the order of the labels")
    return names


def _tar_name(file: File) -> str:
    return to_text(re.split(r"[/\\]", file.path)[-1])


def _safe(key: str) -> str:
    """Return a safe key as it is, and any other quoted and escaped, which no key can look like."""
    return key if KEY.fullmatch(key) else f"'{printable(key)}'"
