"""Read a finished shard directory with random access, by the manifest's offsets.

The reader never unpickles or executes data and never uses a path from a tar: it opens only the files that `build.json`
names, in the directory itself. `checks.check_rows` validates every offset when a directory is opened.
"""

import hashlib
import operator
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.shards.build_json import check_size, compare_size, load_build, read_build, shards_digest
from texturegen.shards.checks import check_rows
from texturegen.shards.layout import MANIFEST
from texturegen.shards.manifest import COLUMNS, read_manifest
from texturegen.shards.sample import Sample, read_meta
from texturegen.shards.sample_index import SampleIndex, load_cached, store_cached
from texturegen.shards.store import LocalStore, RemoteStore, Store
from texturegen.storage.atomic import sha256_of
from texturegen.storage.names import to_text
from texturegen.storage.ranges import Remote, open_directory, reason_of

_CHANGED = "its bytes differ from those that were written"

__all__ = ["Sample", "Shards", "check_size", "open_shards", "read_build"]


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
        manifest = None
        with ThreadPoolExecutor(1) as pool:  # of a million samples, hashing either file takes 0.2 s
            cached = pool.submit(load_cached, self.build, files)
            if not isinstance(self._files, Remote):
                manifest = self._open_manifest()
            index = cached.result()
        if index is None and manifest is None:  # a cached index spares the download
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
        return [read_meta(self._index, i) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        count, i = len(self.keys), operator.index(i)
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
        if self._index is None:  # this process does not see the cached file
            self._index = Shards(self.directory)._index
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
