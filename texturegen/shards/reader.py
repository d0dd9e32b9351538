"""Read a finished shard directory: straight to the bytes, by the manifest's offsets.

Nothing is unpickled or executed, and no path is taken from a tar: only the shard files that `build.json` names,
in the directory itself, are opened.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from texturegen.errors import UserError
from texturegen.shards.layout import BUILD, FORMAT, MANIFEST, PARTS
from texturegen.shards.manifest import COLUMNS, Rows, check_rows, read_manifest
from texturegen.storage.image import decode_member
from texturegen.storage.ranges import Blocks, Chunk, Maps, Remote

SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class Sample:
    """One image with its textures. Bytes are read, pixels decoded and texts parsed on use.

    Attributes
    ----------
    key : unique name of the image in its data set; may hold "/".
    label : class number, -1 where the data set has none.
    meta : what the source knows beside the label (`shapes`: shape, texture, texture_label, split).
    shard : path or URL of the tar.
    image_bytes, texture_bytes : the encoded members, as in the tar; bytes and a tuple of K bytes.
    members : extension -> bytes of what was passed through from the source's own tars.
    """

    __slots__ = ("_image", "_row", "_rows", "_store", "_textures")

    def __init__(self, rows: Rows, row: int, store: Maps | Chunk) -> None:
        self._rows, self._row, self._store = rows, row, store
        self._image: np.ndarray | None = None
        self._textures: np.ndarray | None = None

    @property
    def key(self) -> str:
        return self._rows.keys[self._row]

    @property
    def label(self) -> int:
        return self._rows.label[self._row]

    @property
    def shard(self) -> str:
        return self._rows.files[self._rows.number[self._row]]

    @property
    def meta(self) -> dict[str, Any]:
        """Parsed anew on each use. UserError when it is no JSON object."""
        return _parse(self._rows, self._row)

    @property
    def image_bytes(self) -> bytes:
        rows, row = self._rows, self._row
        at = row * rows.stride
        return self._store.read(rows.number[row], rows.place[at], rows.place[at + 1])

    @property
    def texture_bytes(self) -> tuple[bytes, ...]:
        rows, row = self._rows, self._row
        number, place, read = rows.number[row], rows.place, self._store.read
        at = row * rows.stride
        return tuple([read(number, place[i], place[i + 1]) for i in range(at + 2, at + rows.stride, 2)])

    @property
    def members(self) -> dict[str, bytes]:
        number, members = self._rows.number[self._row], self._rows.members[self._row].as_py()
        return {m["ext"]: self._store.read(number, m["offset"], m["size"]) for m in members if m["ext"] != "cls"}

    @property
    def image(self) -> np.ndarray:
        """uint8 (H, W, 3), RGB, decoded once. UserError when the bytes are damaged."""
        if self._image is None:
            self._image = self._decode(0)
        return self._image

    @property
    def textures(self) -> np.ndarray:
        """uint8 (K, H, W, 3), RGB, decoded once; K = 0 for shards built with `--per-image 0`."""
        if self._textures is None:
            found = [self._decode(i) for i in range(1, self._rows.stride // 2)]
            if len(found) == 1:
                self._textures = found[0][None]
            elif found:
                self._textures = np.stack(found)
            else:
                self._textures = np.empty((0, *self.image.shape), np.uint8)
        return self._textures

    def texture(self, number: int) -> np.ndarray:
        """uint8 (H, W, 3), RGB: one of the K textures, decoded on each call. UserError when the bytes are damaged."""
        if not 0 <= number < self._rows.stride // 2 - 1:
            raise IndexError(f"texture {number} of {self._rows.stride // 2 - 1}")
        return self._decode(1 + number)

    def _decode(self, member: int) -> np.ndarray:
        """The image (member 0) or a texture (1 ...)."""
        rows, row = self._rows, self._row
        at = row * rows.stride + 2 * member
        data = self._store.read(rows.number[row], rows.place[at], rows.place[at + 1])
        try:
            image = decode_member(data)
        except UserError as error:
            raise self._fault(member, str(error)) from None
        shape = rows.height[row], rows.width[row], 3
        if image.shape != shape:
            height, width, _ = image.shape
            raise self._fault(member, f"{width}x{height} pixels, the manifest says {shape[1]}x{shape[0]}")
        return image

    def _fault(self, member: int, fault: str) -> UserError:
        name = f"texture{member - 1}" if member else "image"
        return UserError(f"{self.shard}: {self.key}: {name}: {fault}; `texturegen verify` lists all damage")

    def __repr__(self) -> str:
        return f"Sample(key={self.key!r}, label={self.label}, shard={self.shard!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process go this sample's bytes, not the directory.
        start, end = self._rows.ranges[self._row].tolist()
        data = self._store.read(self._rows.number[self._row], start, end - start)
        return Sample, (self._rows.one(self._row), 0, Chunk(data, start))


class Shards:
    """A finished shard directory as a sequence of samples, in the data set's order.

    Local shards are mapped; of remote ones an index fetches the sample's bytes in one request, and iteration reads
    some MB ahead. Any number of threads may read; pickled, it opens the files anew where it arrives.

    Attributes
    ----------
    directory : Path, or the URL.
    manifest : pyarrow.Table, one row per texture, failed images included (schema.py describes the columns); read on
        first use.
    build : what `build.json` holds (recipe, source, counts, versions, shards).
    keys, labels : of the samples, in order; labels is int64 (N,).
    widths, heights : int64 (N,), pixels.
    numbers : int32 (N,), of the shard that each sample lies in; they rise.
    textures_per_image : K, the same for every sample.
    """

    directory: Any  # Path | str, but who copies or builds knows that it is a Path

    def __init__(self, directory: str | Path) -> None:
        self._remote: Remote | None = None
        self._maps: Maps | None = None
        self._blocks: Blocks | None = None
        if isinstance(directory, str) and "://" in directory:
            self.directory = directory.rstrip("/")
            self._remote = Remote(self.directory)
            self.build = _read_remote_build(self._remote)
        else:
            self.directory = Path(directory)
            self.build = read_build(self.directory)
        self._names = [shard["name"] for shard in self.build["shards"]]
        table = read_manifest(self._manifest_source(), f"{self.directory}/{MANIFEST}", COLUMNS)
        sizes = [shard["bytes"] for shard in self.build["shards"]]
        files = [f"{self.directory}/{name}" for name in self._names]
        if self._remote is None:
            for file, size in zip(files, sizes, strict=True):
                check_size(Path(file), size)
            self._maps = Maps(files, sizes)
        else:
            for file, size, found in zip(files, sizes, self._remote.sizes(self._names), strict=True):
                _compare_size(file, found, size)
        self._rows = check_rows(table, self.build, f"{self.directory}/{MANIFEST}", files)
        self.keys, self.labels = self._rows.keys, self._rows.labels
        self.widths, self.heights, self.numbers = self._rows.widths, self._rows.heights, self._rows.numbers
        self.textures_per_image: int = self.build["recipe"]["per_image"]

    @cached_property
    def manifest(self) -> pa.Table:
        return read_manifest(self._manifest_source(), f"{self.directory}/{MANIFEST}")

    @property
    def classes(self) -> list[str]:
        """Class names by label; empty where the source names none."""
        return list(self.build["source"]["classes"])

    @property
    def digest(self) -> str:
        """One value that changes when any byte of the shards does."""
        return hashlib.sha256("".join(shard["sha256"] for shard in self.build["shards"]).encode()).hexdigest()

    def image_size(self) -> tuple[int, int]:
        """(H, W) of all images; UserError when they differ or there are none."""
        sizes = np.unique(np.stack([self.heights, self.widths], 1), axis=0).tolist()
        if len(sizes) != 1:
            ends = f"{tuple(sizes[0])} to {tuple(sizes[-1])}" if sizes else ""
            found = "there are no images" if not sizes else f"images of {len(sizes)} sizes, {ends}"
            raise UserError(
                f"{self.directory}: {found}, and a batch needs one size; build with --size to resize them all"
            )
        return sizes[0][0], sizes[0][1]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        count = len(self.keys)
        if not -count <= i < count:
            raise IndexError(f"sample {i} of {count} in {self.directory}")
        if i < 0:
            i += count
        if self._maps is not None:
            return Sample(self._rows, i, self._maps)
        assert self._remote is not None
        number, (start, end) = int(self._rows.number[i]), self._rows.ranges[i].tolist()
        if self._blocks is not None:
            size = self.build["shards"][number]["bytes"]
            return Sample(self._rows, i, self._blocks.sample(self._names[number], start, end, size))
        return Sample(self._rows, i, self._remote.sample(self._names[number], start, end))

    def keep_blocks(self, at_most: int) -> None:
        """Fetch remote samples in blocks from now on, and keep up to `at_most` bytes of those used last.

        For an order in which samples that lie close together come soon after each other: a request then serves hundreds
        of small samples. Local shards are not changed.
        """
        if self._remote is not None:
            self._blocks = Blocks(self._remote, at_most)

    def __iter__(self) -> Iterator[Sample]:
        rows = self._rows
        if self._maps is not None:
            maps = self._maps
            return (Sample(rows, i, maps) for i in range(len(self)))
        assert self._remote is not None
        chunks = self._remote.samples(self._names, rows.numbers, rows.ranges)
        return (Sample(rows, i, chunk) for i, chunk in enumerate(chunks))

    def metas(self) -> list[dict[str, Any]]:
        """The `.meta` of every sample, without touching the tars."""
        return [_parse(self._rows, row) for row in range(len(self))]

    def _manifest_source(self) -> Any:
        if self._remote is None:
            return self.directory / MANIFEST
        data = self._remote.fetch(MANIFEST)
        if data is None:
            raise UserError(f"{self.directory}/{MANIFEST}: missing; build again into a new directory")
        return pa.BufferReader(data)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "manifest"}


def open_shards(directory: str | Path) -> Shards:
    """Open a finished shard directory; it has a length, indexing and iteration over `Sample`, and `.manifest`.

    A URL (s3://bucket/train, gs://...) is read through fsspec, for which the URL's driver must be installed.

    Raises UserError when the directory is missing, unfinished, of another format or damaged, or a shard's size wrong.
    """
    return Shards(directory)


def read_build(directory: Path) -> dict[str, Any]:
    """What build.json of a local directory holds; UserError when it is missing, damaged or of another format."""
    path = directory / BUILD
    if not path.is_file():
        raise _no_build(directory, (directory / PARTS).is_dir())
    try:
        return _parse_build(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def check_size(path: Path, size: int) -> None:
    """UserError when the file is missing or has not `size` bytes."""
    _compare_size(str(path), path.stat().st_size if path.is_file() else None, size)


def _compare_size(file: str, found: int | None, size: int) -> None:
    if found is None:
        raise UserError(
            f"{file}: missing; `texturegen repair` makes it again from the data set, or copy it from elsewhere"
        )
    if found != size:
        raise UserError(
            f"{file}: {found} bytes where {size} were written; "
            "`texturegen repair` makes it again from the data set (`texturegen verify` lists all damage)"
        )


def _read_remote_build(remote: Remote) -> dict[str, Any]:
    data = remote.fetch(BUILD)
    if data is None:
        raise _no_build(remote.url, remote.exists(PARTS))
    return _parse_build(data, f"{remote.url}/{BUILD}")


def _no_build(directory: str | Path, unfinished: bool) -> UserError:
    if unfinished:
        return UserError(f"{directory}: this build is not finished; run the same `texturegen build` again")
    return UserError(f"{directory}: no shards here ({BUILD} is missing); make some with `texturegen build`")


def _parse_build(data: bytes, name: str) -> dict[str, Any]:
    try:
        build = json.loads(data)
        if build["format"] > FORMAT:
            raise UserError(f"{name}: format {build['format']} is newer than this version reads ({FORMAT}); upgrade")
        if build["format"] < FORMAT:
            raise UserError(f"{name}: built by an earlier version (format {build['format']}): build again")
        numbers = [build["recipe"]["per_image"], build["counts"]["samples"]]
        for shard in build["shards"]:
            if not SHARD.fullmatch(shard["name"]):
                raise UserError(f"{name}: shard name {shard['name']!r} leads out of the directory; not opened")
            numbers.append(shard["bytes"])
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
            raise ValueError("a count or size is none")
        if not isinstance(build["source"]["classes"], list):
            raise ValueError("its classes are no list")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{name}: damaged ({error!r}); build again into a new directory") from None
    return build


def _parse(rows: Rows, row: int) -> dict[str, Any]:
    try:
        meta = json.loads(rows.metas[row].as_py())
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise UserError(f"{rows.files[rows.number[row]]}: {rows.keys[row]}: the manifest's meta is no JSON object")
    return meta
