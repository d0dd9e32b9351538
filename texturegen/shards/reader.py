"""Read a finished shard directory with random access, by the manifest's offsets.

The reader never unpickles or executes data and never uses a path from a tar: it opens only the files that `build.json`
names, in the directory itself. `manifest.check_rows` validates every offset when a directory is opened.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.shards.build_json import check_size, compare_size, load_build, read_build, shards_digest
from texturegen.shards.layout import MANIFEST, MASK, PASTED
from texturegen.shards.manifest import COLUMNS, check_rows, digest_of, parse_meta, read_manifest
from texturegen.shards.sample_index import SampleIndex, load_cached, store_cached
from texturegen.shards.store import LocalStore, RemoteStore, Store
from texturegen.storage.atomic import sha256_of
from texturegen.storage.image import decode_member
from texturegen.storage.names import to_text
from texturegen.storage.ranges import Chunk, Ranges, Remote, open_directory, reason_of

_CHANGED = "its bytes differ from those that were written"

__all__ = ["Sample", "Shards", "check_size", "open_shards", "read_build"]


class Sample(Mapping[str, Any]):
    """One image with its textures. Bytes are read, pixels decoded and metadata parsed on access.

    A sample is also a mapping with the keys "key", "label", "image" and "textures", so torch's default collation makes
    a batch of samples a dict: lists of str, int64 (N,), uint8 (N, H, W, 3) and uint8 (N, K, H, W, 3).

    Attributes
    ----------
    key : str
        Unique name of the image in its data set; may contain "/".
    label : int
        Class index, -1 if the image has no label.
    meta : dict
        Source-specific metadata (`shapes`: shape, texture, texture_label, split).
    shard : str
        Path or URL of the tar.
    image, textures : ndarray
        Decoded pixels, uint8 (H, W, 3) and (K, H, W, 3) RGB.
    image_bytes, texture_bytes : bytes, tuple of bytes
        The encoded members, as in the tar; DamagedError if they differ from the manifest's checksums.
    members : dict of str to bytes
        Extra members by extension: those copied from the source's own tars, and those of `--paste`.
    pasted, masks : ndarray
        Of shards built with `--paste`: the image with each texture pasted into it, uint8 (K, H, W, 3) RGB, and where,
        uint8 (K, H, W).

    Examples
    --------
    >>> sample = open_shards("shards")[0]
    >>> sample
    Sample(key='shapes-train-00000000', label=0, shard='shards/shard-000000.tar')
    >>> sample.image.shape, sample.textures.shape
    ((32, 32, 3), (1, 32, 32, 3))
    """

    FIELDS = ("key", "label", "image", "textures")

    __slots__ = ("_bytes", "_i", "_image", "_index", "_textures")

    def __init__(self, index: SampleIndex, i: int, ranges: Ranges) -> None:
        self._index, self._i, self._bytes = index, i, ranges
        self._image: np.ndarray | None = None
        self._textures: np.ndarray | None = None

    @property
    def key(self) -> str:
        return self._index.keys[self._i]

    @property
    def label(self) -> int:
        return self._index.labels_view[self._i]

    @property
    def shard(self) -> str:
        return self._index.files[self._index.shard_ids_view[self._i]]

    @property
    def meta(self) -> dict[str, Any]:
        """Parsed on each access; DamagedError if it is not a JSON object."""
        return _meta(self._index, self._i)

    @property
    def image_bytes(self) -> bytes:
        return self._read(0)

    @property
    def texture_bytes(self) -> tuple[bytes, ...]:
        return tuple([self._read(member) for member in range(1, self._index.stride // 2)])

    @property
    def members(self) -> dict[str, bytes]:
        return self._read_members("")

    @property
    def pasted(self) -> np.ndarray:
        """uint8 (K, H, W, 3) RGB, decoded on each access; DamagedError if the bytes are damaged."""
        return self._decode_members(PASTED)

    @property
    def masks(self) -> np.ndarray:
        """uint8 (K, H, W), 255 where a texture is pasted, decoded on each access; DamagedError if damaged."""
        return self._decode_members(MASK)[..., 0]

    def _decode_members(self, name: str) -> np.ndarray:
        """Return the members NAME0.EXT, NAME1.EXT, ... as uint8 (K, H, W, 3) RGB."""
        found = []
        for number in range(self._index.stride // 2 - 1):
            members = self._read_members(f"{name}{number}.")
            if len(members) != 1:
                missing = f"no member {name}{number}.png"
                raise UserError(f"{self.shard}: {self.key}: {missing}; build the shards with --paste")
            ((ext, data),) = members.items()
            try:
                found.append(decode_member(data))
            except UserError as error:
                raise self._fault(ext, str(error)) from None
        if not found:
            raise UserError(f"{self.shard}: {self.key}: no textures; build the shards with --paste")
        return np.stack(found)

    def _read_members(self, prefix: str) -> dict[str, bytes]:
        """Return the extra members whose extension begins with `prefix`."""
        shard, found = self._index.shard_ids_view[self._i], {}
        for member in self._index.members[self._i].as_py():
            if member["ext"] != "cls" and member["ext"].startswith(prefix):
                data = self._bytes.read(shard, member["offset"], member["size"])
                if digest_of(data) != member["digest"]:
                    raise self._fault(member["ext"], _CHANGED)
                found[member["ext"]] = data
        return found

    @property
    def image(self) -> np.ndarray:
        """uint8 (H, W, 3) RGB, decoded once; DamagedError if the bytes are damaged."""
        if self._image is None:
            self._image = self._decode(0)
        return self._image

    @property
    def textures(self) -> np.ndarray:
        """uint8 (K, H, W, 3) RGB, decoded once; K is 0 for shards built with `--per-image 0`."""
        if self._textures is None:
            decoded = [self._decode(i) for i in range(1, self._index.stride // 2)]
            if len(decoded) == 1:
                self._textures = decoded[0][None]
            elif decoded:
                self._textures = np.stack(decoded)
            else:
                self._textures = np.empty((0, *self.image.shape), np.uint8)
        return self._textures

    def texture(self, number: int) -> np.ndarray:
        """Return one of the K textures, uint8 (H, W, 3) RGB, decoded on each call.

        Raises
        ------
        IndexError
            `number` is not in 0 .. K - 1.
        DamagedError
            The bytes are damaged.
        """
        if not 0 <= number < self._index.stride // 2 - 1:
            raise IndexError(f"texture {number} of {self._index.stride // 2 - 1}")
        return self._decode(1 + number)

    def _read(self, member: int) -> bytes:
        """Return the bytes of the image (member 0) or a texture (1 .. K).

        Most flipped bits in a JPEG or WebP file still decode, to other pixels, so the bytes are hashed on each read.
        """
        index, i = self._index, self._i
        at = i * index.stride + 2 * member
        data = self._bytes.read(index.shard_ids_view[i], index.extents_view[at], index.extents_view[at + 1])
        if digest_of(data) != index.digests_view[at // 2]:
            raise self._fault(_member_name(member), _CHANGED)
        return data

    def _decode(self, member: int) -> np.ndarray:
        """Return the image (member 0) or a texture (1 .. K)."""
        index, i, data = self._index, self._i, self._read(member)
        try:
            image = decode_member(data)
        except UserError as error:
            raise self._fault(_member_name(member), str(error)) from None
        shape = index.heights_view[i], index.widths_view[i], 3
        if image.shape != shape:
            height, width, _ = image.shape
            fault = f"is {width}x{height} pixels, but the manifest records {shape[1]}x{shape[0]}"
            raise self._fault(_member_name(member), fault)
        return image

    def _fault(self, name: str, fault: str) -> DamagedError:
        return DamagedError(f"{self.shard}: {self.key}: {name}: {fault}; `texturegen verify` lists all damage")

    def __getitem__(self, name: str) -> Any:
        if name not in self.FIELDS:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.FIELDS)

    def __len__(self) -> int:
        return len(self.FIELDS)

    # Mapping compares contents, which would decode the images of both samples.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Sample(key={self.key!r}, label={self.label}, shard={self.shard!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The sample's own bytes are pickled, so the receiver does not need the directory.
        start, end = self._index.ranges[self._i].tolist()
        data = self._bytes.read(self._index.shard_ids_view[self._i], start, end - start)
        return Sample, (self._index.select(self._i), 0, Chunk(data, start))


class Shards:
    """A finished shard directory as a sequence of samples, in the data set's order.

    A local member takes one read. A remote sample takes one request, and iteration fetches a few MB ahead. The object
    is thread-safe, and can be pickled: the copy opens the files again.

    Attributes
    ----------
    directory : Path or str
        The directory, or its URL.
    manifest : pyarrow.Table
        One row per texture and one per failed image, read on first access; docs/shards.md describes the columns.
    build : dict
        Content of `build.json`: recipe, source, counts, versions, shards.
    keys : sequence of str
        Keys of the samples, in order.
    labels, widths, heights : ndarray
        int64 (N,); widths and heights in pixels.
    numbers : ndarray
        int32 (N,), index of the shard that holds each sample, ascending.
    textures_per_image : int
        K, equal for all samples.

    Examples
    --------
    >>> shards = open_shards("shards")
    >>> len(shards), len(shards.classes), shards.textures_per_image, shards.image_size()
    (64, 10, 1, (32, 32))
    >>> sum(sample.label == 0 for sample in shards)
    7
    >>> shards.manifest.num_rows
    64
    """

    directory: Any  # Path | str; Any, so that code for local directories alone needs no cast

    def __init__(self, directory: str | Path) -> None:
        self._files = open_directory(directory)
        self.directory = self._files.url if isinstance(self._files, Remote) else self._files.path
        self.build = load_build(self._files)
        names = [shard["name"] for shard in self.build["shards"]]
        sizes = [shard["bytes"] for shard in self.build["shards"]]
        files = [self._files.locate(name) for name in names]
        index = load_cached(self.build, files)
        manifest = None
        if index is None or not isinstance(self._files, Remote):  # a cached index spares the download
            manifest = self._open_manifest()
        for file, found, size in zip(files, self._files.sizes(names), sizes, strict=True):
            compare_size(file, found, size)
        self._index = self._check(manifest, files) if index is None else index
        self._block_cache_bytes: int | None = None
        self._connect()

    def _connect(self) -> None:
        """Set what is derived from the index and build.json."""
        index, names = self._index, [shard["name"] for shard in self.build["shards"]]
        sizes = [shard["bytes"] for shard in self.build["shards"]]
        self._store: Store = (
            RemoteStore(self._files, names, sizes, index.shard_ids, index.ranges)
            if isinstance(self._files, Remote)
            else LocalStore(index.files, sizes, len(index.keys))
        )
        self.keys, self.labels = index.keys, index.labels
        self.widths, self.heights, self.numbers = index.widths, index.heights, index.shard_ids
        self.textures_per_image: int = self.build["recipe"]["per_image"]
        if self._block_cache_bytes is not None:
            self.enable_block_cache(self._block_cache_bytes)

    def _check(self, manifest: Any, files: list[str]) -> SampleIndex:
        """Return the index of an open manifest, and put it in the user's cache if it is large."""
        index, faults = check_rows(self._parse(manifest, COLUMNS), self.build, files)
        if index is None or faults:
            raise self._damaged(faults[0])
        return store_cached(index, self.build)

    @cached_property
    def manifest(self) -> pa.Table:
        return self._parse(self._open_manifest(), None)

    @property
    def classes(self) -> list[str]:
        """Class names by label; empty if the source names none."""
        return [to_text(name) for name in self.build["source"]["classes"]]

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal, which changes with any byte of the shards."""
        return shards_digest(self.build)

    def image_size(self) -> tuple[int, int]:
        """Return (H, W) of all images in pixels; UserError if they differ or there are none."""
        sizes = np.unique(np.stack([self.heights, self.widths], 1), axis=0).tolist()
        if len(sizes) != 1:
            ends = f"{tuple(sizes[0])} to {tuple(sizes[-1])}" if sizes else ""
            found = "there are no images" if not sizes else f"images have {len(sizes)} sizes, {ends}"
            raise UserError(
                f"{self.directory}: {found}, but a batch needs images of one size; build with --size to resize them all"
            )
        return sizes[0][0], sizes[0][1]

    def enable_block_cache(self, max_bytes: int) -> None:
        """Fetch remote samples in blocks from now on, through an LRU cache of at most `max_bytes`.

        Use it when neighbouring samples are read soon after each other: one request then serves hundreds of small
        samples. It has no effect on local shards.
        """
        self._block_cache_bytes = max_bytes
        if isinstance(self._store, RemoteStore):
            self._store.enable_block_cache(max_bytes)

    def metas(self) -> list[dict[str, Any]]:
        """Return `Sample.meta` of every sample without reading the tars; DamagedError if one is not a JSON object."""
        return [_meta(self._index, i) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        count = len(self.keys)
        if not -count <= i < count:
            raise IndexError(f"sample {i} of {count} in {self.directory}")
        if i < 0:
            i += count
        return Sample(self._index, i, self._store.sample(i))

    def __iter__(self) -> Iterator[Sample]:
        index = self._index
        return (Sample(index, i, ranges) for i, ranges in enumerate(self._store.samples()))

    def _parse(self, manifest: Any, columns: list[str] | None) -> pa.Table:
        try:
            return read_manifest(manifest, columns)
        except DamagedError as error:
            raise self._damaged(str(error)) from None

    def _open_manifest(self) -> Any:
        """Return the manifest as a path or an Arrow file, whose SHA-256 is that of build.json.

        A single flipped bit can change a label, so it is compared each time.
        """
        source: Any
        try:
            if isinstance(self._files, Remote):
                data = self._files.fetch(MANIFEST)
                source = None if data is None else pa.BufferReader(data)
                sha256 = hashlib.sha256(data or b"").hexdigest()
            else:
                source = self.directory / MANIFEST
                sha256 = sha256_of(source)
        except FileNotFoundError:
            source = None
        except OSError as error:
            raise UserError(f"{self._files.locate(MANIFEST)}: cannot be read ({reason_of(error)})") from None
        if source is None:
            raise MissingError(f"{self._files.locate(MANIFEST)}: missing; copy it again, or build into a new directory")
        if sha256 != self.build["manifest_sha256"]:
            raise self._damaged("its checksum differs from build.json")
        return source

    def _damaged(self, fault: str) -> DamagedError:
        return DamagedError(
            f"{self._files.locate(MANIFEST)}: {fault}; the manifest is damaged: copy it again, or build into a new "
            "directory (`texturegen verify` lists all damage)"
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_files", "directory", "build", "_index", "_block_cache_bytes")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()


def open_shards(directory: str | Path) -> Shards:
    """Open a finished shard directory for reading.

    Parameters
    ----------
    directory : str or Path
        A directory, or a URL (s3://bucket/train, gs://...) for which an fsspec driver is installed.

    Returns
    -------
    Shards
        A sequence of `Sample`, with the `manifest` and the content of build.json.

    Raises
    ------
    MissingError
        The directory or one of its files is missing, the build is not finished, or the URL's driver is not installed.
    DamagedError
        The manifest, build.json or a shard's size is wrong.
    UserError
        The directory has another format, or cannot be read.

    Examples
    --------
    >>> import texturegen
    >>> shards = texturegen.open_shards("shards")
    >>> sample = shards[3]
    >>> sample.key, sample.label, sample.image.dtype
    ('shapes-train-00000003', 3, dtype('uint8'))
    """
    return Shards(directory)


def _member_name(member: int) -> str:
    return f"texture{member - 1}" if member else "image"


def _meta(index: SampleIndex, i: int) -> dict[str, Any]:
    meta = parse_meta(index.metas[i].as_py())
    if meta is None:
        raise DamagedError(
            f"{index.files[index.shard_ids_view[i]]}: {index.keys[i]}: the manifest's meta is not a JSON object; "
            "`texturegen verify` lists all damage"
        )
    return meta
