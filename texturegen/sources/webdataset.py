"""Existing WebDataset tars (github.com/webdataset/webdataset), to add textures to a data set that is in shards already.

A sample is the adjacent members KEY.EXT of a tar. The headers are read once for a whole build, into a table of places;
after that a sample is one read of its own bytes, from a local file or by a range request. Compressed tars are read as
streams (`tar_streams`).
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from texturegen.errors import ImageError, SourceLost, UserError
from texturegen.sources.base import Item, Source
from texturegen.sources.files import make_key, retry
from texturegen.sources.patterns import File, buffered, has_changed
from texturegen.sources.tar_index import NOT_FOLLOWED
from texturegen.sources.tar_labels import LabelRule, parse_rule
from texturegen.sources.tar_listing import Member, TarListing, list_tars, relocate, tar_name, tar_stem
from texturegen.sources.tar_streams import open_stream
from texturegen.storage.image import decode_image, original_extension
from texturegen.storage.names import key_pattern, printable, to_text

IMAGES = ("png", "jpg", "jpeg", "webp")
RESERVED_IMAGES = ("png", "jpg", "webp")  # extensions of the image in shards, which no other member can have
KEYS = ("key", "tar/key")
KEY = key_pattern(100)
SHORT_KEY = key_pattern(80)  # as in shards
MAX_SAMPLE = 2**29  # bytes of a sample, which is held in memory


class WebDataset(Source):
    """The samples of WebDataset tars, in the order of the tars and of the samples in them, under their own keys.

    The label is the number in KEY.cls, or -1 without one. It may also be the name of a class, one of `classes`; without
    `classes`, the names of all samples are read once, when the data set is opened, and sorted. All other members go
    with the image unchanged, as `Item.members`; extensions become lower case, as in WebDataset's readers. Another image
    of the sample, such as a mask, becomes `other.EXT`, because in shards KEY.EXT is the image. A sample raises
    ImageError if its key could be a path (`..`, a leading "/") or is not plain ASCII, or if one of its members is a
    link.

    Parameters
    ----------
    root : a folder of *.tar, one tar, or a pattern or URL of some: DIR/{000..003}.tar, s3://bucket/train-*.tar. Tars
        compressed by gzip, bzip2, xz or Zstandard are read too, slowly.
    split : None; the tars are one split.
    size : side of the images in pixels; None keeps theirs.
    image : extension of the member that is the image, or several in the order in which they are looked for, as a list
        or separated by commas; None is png, jpg, jpeg, webp, of which a sample may have one.
    classes : a text file of class names, one per line, in the order of the labels, or a list of them.
    rename_keys : give each key that shards do not allow a new one, of its readable characters and a hash of all of it;
        `Item.meta["key"]` is then the old one.
    label : where the label is: the extension of a member (cls, txt), or EXT:FIELD for a field of a JSON member
        (json:label, json:meta.class).
    key : "key", or "tar/key" to put the name of the tar before each key, if several tars have the same keys.
    listing : `WebDataset.index` of the same tars, opened in another process; spares the reading of their headers.

    Attributes
    ----------
    ignored : the members that belong to no sample, as "TAR: NAME".
    """

    name = "webdataset"
    index: TarListing

    def __init__(
        self,
        root: str,
        split: None,
        size: int | None,
        image: str | Sequence[str] | None = None,
        classes: str | Path | Sequence[str] | None = None,
        rename_keys: bool = False,
        label: str = "cls",
        key: str = "key",
        listing: TarListing | None = None,
    ) -> None:
        if not isinstance(rename_keys, bool):
            raise UserError(f"rename_keys is {rename_keys!r}; it must be true or false")
        if key not in KEYS:
            raise UserError(f"key is {key!r}; it must be key, or tar/key if several tars have the same keys")
        self.split, self.size, self.one_size = split, size, size is not None
        self._rename_keys, self._is_image_chosen = rename_keys, image is not None
        self._with_tar, self._label = key == "tar/key", parse_rule(label)
        self._images = IMAGES if image is None else _parse_extensions(image)
        named = None if classes is None else _read_names(classes)
        if listing is None:
            self.index = list_tars(root, self._with_tar, None if named else self._label)
        else:
            self.index = listing if listing.root == root else relocate(listing, root)
        self._are_classes_given = named is not None
        self.classes = named or self.index.classes or []
        self._labels = {name: number for number, name in enumerate(self.classes)}
        self._stems = [tar_stem(file) for file in self.index.files] if self._with_tar else []
        self.ignored = [
            f"{tar_name(file)}: {name}"
            for file, names in zip(self.index.files, self.index.ignored, strict=True)
            for name in names
        ]

    def __len__(self) -> int:
        return self.index.ends[-1]

    def key(self, index: int) -> str:
        return self._key(index)[0]

    def _read(self, index: int) -> Item:
        number, file = self._locate(index)
        key, old = self._key(index)

        def refuse(reason: str) -> ImageError:
            return ImageError(key, f"{tar_name(file)}: {reason}")

        if not KEY.fullmatch(key):
            raise refuse(
                f"the key {printable(old)} is not allowed in shards, where keys are letters, digits, _ and - "
                "with / between them; give such samples new keys with --source-option rename_keys=true"
            )
        if has_changed(file, self.index.listed_at):
            raise SourceLost(
                f"{to_text(file.path)} changed after the build began; restore it and run the same command again, or "
                "build into another directory"
            )
        members = _read_members(file, self.index.compressions[number], self.index.members(index), refuse)
        chosen = next((ext for ext in self._images if ext in members), None)
        if chosen is None:
            there = ", ".join(map(printable, members))
            raise refuse(
                f"has no member {' or '.join(self._images)}; choose among {there} with --source-option image=EXT"
            )
        label = self._find_label(members, refuse)
        data = members.pop(chosen)
        self._rename_members(members, chosen, refuse)
        try:
            image = decode_image(data)
        except UserError as error:
            raise refuse(f"{chosen}: {error}") from error
        extension = original_extension(data, image)
        original = data if extension else None
        meta = {"tar": tar_name(file)} | ({"key": to_text(old)} if key != old and self._rename_keys else {})
        return Item(key, image, label, original, extension or "png", meta, members)

    def _rename_members(self, members: dict[str, bytes], chosen: str, refuse: Callable[[str], ImageError]) -> None:
        """Give the members that shards have themselves, other images and the label, the name other.EXT."""
        if self._label.ext == "cls":
            members.pop("cls", None)
        for ext in [ext for ext in (*RESERVED_IMAGES, "cls") if ext in members]:
            if ext != "cls" and not self._is_image_chosen:
                raise refuse(
                    f"has several images; choose {chosen} or {ext} with --source-option image=EXT, and the other is "
                    "kept as other.EXT"
                )
            if f"other.{ext}" in members:
                raise refuse(
                    f"has members {ext} and other.{ext}, which get the same name in shards; rename one of them"
                )
            members[f"other.{ext}"] = members.pop(ext)

    def _find_label(self, members: dict[str, bytes], refuse: Callable[[str], ImageError]) -> int:
        try:
            label = self._label.read(members)
        except UserError as error:
            raise refuse(str(error)) from None
        if label is None:
            return -1
        if isinstance(label, str):
            if label not in self._labels:
                known = f"the class names are {', '.join(map(printable, self.classes[:5]))}" if self.classes else ""
                raise refuse(
                    f"{self._label} holds '{printable(label)}', which is not a class number"
                    f"{', and ' + known if known else ''}; "
                    f"{'add it to --classes' if self._are_classes_given else 'give the names with --classes'}"
                )
            if self.classes.count(label) > 1:  # numbers may still tell the two apart
                raise refuse(
                    f"{self._label} holds '{printable(label)}', which is the name of several classes in --classes; "
                    "make the names unique, or label the samples by numbers"
                )
            return self._labels[label]
        if self.classes and not self._are_classes_given and label >= 0:
            raise refuse(
                f"{self._label} is the number {label}, where other samples have class names; use either names or "
                "numbers, or list all names with --classes, where numbers count them from 0"
            )
        if self.classes and label >= len(self.classes):
            raise refuse(f"{self._label} is {label}, but there are {len(self.classes)} class names")
        return label

    def _key(self, index: int) -> tuple[str, str]:
        """Return the key of a sample in shards, and its key in the tar, with the tar's name if it is asked for."""
        old = self.index.key(index)
        if self._with_tar:
            old = f"{self._stems[self._locate(index)[0]]}/{old}"
        if self._rename_keys and not SHORT_KEY.fullmatch(old):
            return make_key(old), old
        return _safe(old), old

    def _locate(self, index: int) -> tuple[int, File]:
        number = bisect_right(self.index.ends, index)
        return number, self.index.files[number]

    def _identity(self) -> Any:
        tars = [[tar_name(f), f.size, digest] for f, digest in zip(self.index.files, self.index.digests, strict=True)]
        # Absent by default: digests of old builds stay valid.
        renamed = ["rename_keys"] if self._rename_keys else []
        changed = {"label": str(self._label)} if self._label != LabelRule() else {}
        changed |= {"key": "tar/key"} if self._with_tar else {}
        return [self.name, list(self._images), self.classes, tars, *renamed, *([changed] if changed else [])]


def _read_members(
    file: File, compression: str, members: Sequence[Member], refuse: Callable[[str], ImageError]
) -> dict[str, bytes]:
    """Return extension -> bytes of all members of a sample, by one read if they lie together."""
    for member in members:
        if member.offset == NOT_FOLLOWED:
            raise refuse(f"the member {printable(member.ext)} is a link, a device or a pipe, which are not followed")
    if sum(member.size for member in members) > MAX_SAMPLE:
        raise refuse(f"the sample exceeds the limit of {MAX_SAMPLE // 2**20} MB")
    read = open_stream(file.path, compression, file.stamp)
    start, end = members[0].offset, members[-1].offset + members[-1].size
    if end - start <= MAX_SAMPLE and not compression:
        read = buffered(read, file.size, end - start)
    try:
        found = retry(lambda: {m.ext: read(m.offset, m.offset + m.size) for m in members})
    except OSError as error:
        raise SourceLost(f"{to_text(file.path)} can no longer be read: {error.strerror or error}") from error
    if any(len(found[member.ext]) != member.size for member in members):
        raise refuse("the tar is shorter than when it was indexed")
    return found


def _parse_extensions(image: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(image, (str, Sequence)):
        raise UserError(f"image is {image!r}; it must be an extension, or several separated by commas")
    names = image.split(",") if isinstance(image, str) else image
    extensions = tuple(str(name).strip().lower().removeprefix(".") for name in names)
    for name in extensions or ("",):
        if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name) or name == "cls":
            raise UserError(f"'{name}' cannot be the extension of an image; use for example image=left.png")
    return extensions


def _read_names(classes: str | Path | Sequence[str]) -> list[str]:
    if not isinstance(classes, (str, Path, Sequence)):
        raise UserError(f"classes is {classes!r}; it must be a text file of class names, or a list of them")
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


def _safe(key: str) -> str:
    """Return a safe key as it is, and any other quoted and escaped, which no key can look like."""
    return key if KEY.fullmatch(key) else f"'{printable(key)}'"
