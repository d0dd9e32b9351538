"""The columns that reading a sample needs, in memory or in a memory-mapped file of the user's cache.

Parsing and checking the manifest of a million samples takes seconds and hundreds of MB in every process. Of a large
directory this is done once; later processes map the result, so they share its memory and read only the pages they use.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import pyarrow as pa

from texturegen import __version__
from texturegen.storage.atomic import sha256_of, temporary_name

MIN_SAMPLES = 50_000  # smaller directories open in less than 0.1 s without a cached file
MAX_FILES = 16  # in the cache; the least recently used are removed
LAYOUT = 1  # of the cached file; raised when its columns change
_ARRAYS = ("label", "width", "height", "shard", "extent", "digest", "range")


class Keys(Sequence[str]):
    """Strings of an Arrow array as a sequence: a million keys as Python objects would take 100 MB.

    Parameters
    ----------
    array : pyarrow.StringArray
        Without nulls.
    """

    def __init__(self, array: pa.StringArray) -> None:
        self.array = array
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int32) if offsets else np.zeros(1, np.int32)
        ends = ends[array.offset : array.offset + len(array) + 1]
        self._ends, self._data = memoryview(cast(Any, ends)), memoryview(data) if data else memoryview(b"")

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"key {i} of {len(self)}")
        if i < 0:
            i += len(self)
        return str(self._data[self._ends[i] : self._ends[i + 1]], "utf-8")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self.array.slice(start, 4096).to_pylist()

    def __add__(self, other: Sequence[str]) -> list[str]:
        return [*self, *other]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | Keys) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} keys>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Keys, (self.array,)


class SampleIndex:
    """Keys, labels, image sizes and byte extents of all samples, in order.

    Attributes
    ----------
    keys : Keys, length N.
    labels : int64 (N,), -1 for unlabelled samples.
    widths, heights : int64 (N,), in pixels.
    shard_ids : int32 (N,), index into `files` of the sample's shard.
    extents : int64 (N, 1 + K, 2), offset and size in bytes of the image and of each texture.
    digests : uint64 (N, 1 + K), the first 8 bytes of the SHA-256 of the image and of each texture. They are enough to
        find damage, and take a quarter of the memory.
    ranges : int64 (N, 2), start and end of the byte range that spans all members of the sample.
    metas : pyarrow string (N,), JSON.
    members : pyarrow list (N,) of {ext, offset, size, digest}: "cls" and the passed-through members.
    files : list of str, path or URL of each shard.
    cached : the file that the arrays are mapped from; None if they are in memory.
    stride : int, entries per sample in `extents_view`.
    labels_view, widths_view, heights_view, shard_ids_view, extents_view, digests_view : flat memoryviews of these
        arrays. A memoryview returns a Python int four times as fast as a NumPy array does.
    """

    def __init__(
        self,
        keys: Keys,
        labels: np.ndarray,
        widths: np.ndarray,
        heights: np.ndarray,
        shard_ids: np.ndarray,
        extents: np.ndarray,
        digests: np.ndarray,
        ranges: np.ndarray,
        metas: pa.Array,
        members: pa.Array,
        files: list[str],
    ) -> None:
        self.keys, self.labels, self.widths, self.heights, self.shard_ids = keys, labels, widths, heights, shard_ids
        self.extents, self.digests, self.ranges = extents, digests, ranges
        self.metas, self.members, self.files = metas, members, files
        self.cached: Path | None = None
        self.stride = 2 * extents.shape[1]
        self.labels_view, self.widths_view, self.heights_view = map(_flat_view, (labels, widths, heights))
        self.shard_ids_view, self.extents_view, self.digests_view = map(_flat_view, (shard_ids, extents, digests))

    def select(self, i: int) -> "SampleIndex":
        """Return an index of sample `i` alone. It is a copy, because pickling a slice would pickle the whole array."""
        one = slice(i, i + 1)
        labels, widths, heights, _, extents, digests, ranges = (array[one].copy() for array in self._arrays())
        metas, members = (pa.array(array[one].to_pylist(), array.type) for array in (self.metas, self.members))
        files = [self.files[self.shard_ids_view[i]]]
        keys, shard_ids = Keys(pa.array([self.keys[i]], pa.string())), np.zeros(1, np.int32)
        return SampleIndex(keys, labels, widths, heights, shard_ids, extents, digests, ranges, metas, members, files)

    def _arrays(self) -> tuple[np.ndarray, ...]:
        first = (self.labels, self.widths, self.heights, self.shard_ids)
        return (*first, self.extents, self.digests, self.ranges)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.cached is not None and self.cached.is_file():
            return _map_again, (self.cached, self.files)
        return SampleIndex, (self.keys, *self._arrays(), self.metas, self.members, self.files)


def digest_of(data: bytes) -> int:
    """Return the entry of `SampleIndex.digests` for the bytes of a member."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def load_cached(build: Mapping[str, Any], files: list[str]) -> SampleIndex | None:
    """Return the index of a directory from the user's cache; None if it is not there, or damaged.

    Parameters
    ----------
    build : mapping
        Content of build.json.
    files : list of str
        Path or URL of each shard.
    """
    if build["counts"]["samples"] < MIN_SAMPLES:
        return None
    try:
        for path in _cache().glob(f"{_identify(build)}-*.arrow"):
            if sha256_of(path) == path.stem.rpartition("-")[2]:
                os.utime(path)
                return _map(path, files)
    except (OSError, pa.ArrowException, ValueError):  # no cache, or another process has just removed the file
        pass
    return None


def store_cached(index: SampleIndex, build: Mapping[str, Any]) -> SampleIndex:
    """Write an index that `check_rows` returned to the user's cache, and return it mapped; unchanged if that fails."""
    if build["counts"]["samples"] < MIN_SAMPLES:
        return index
    try:
        folder = _cache()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(folder / "new.arrow")
        try:
            _write(index, temporary)
            path = folder / f"{_identify(build)}-{sha256_of(temporary)}.arrow"
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        found = sorted(folder.glob("*.arrow"), key=lambda path: path.stat().st_mtime_ns)
        for old in found[:-MAX_FILES]:
            old.unlink(missing_ok=True)
        return _map(path, index.files)
    except (OSError, pa.ArrowException, ValueError):
        return index


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("texturegen") / "index"


def _identify(build: Mapping[str, Any]) -> str:
    """Return the digest of all that `check_rows` depends on."""
    shards = [[shard[name] for name in ("name", "bytes", "samples", "textures")] for shard in build["shards"]]
    checked = [build["manifest_sha256"], build["recipe"]["per_image"], build["counts"], shards]
    return hashlib.sha256(json.dumps([LAYOUT, __version__, checked], sort_keys=True).encode()).hexdigest()


def _write(index: SampleIndex, path: Path) -> None:
    columns = {"key": index.keys.array, "meta": index.metas, "members": index.members}
    for name, array in zip(_ARRAYS, index._arrays(), strict=True):
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        columns[name] = flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array[0].size)
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    with open(path, "wb") as f, pa.ipc.new_file(f, batch.schema) as writer:
        writer.write_batch(batch)


def _map(path: Path, files: list[str]) -> SampleIndex:
    """Return the index in a cached file. Its arrays are read-only views of the file, labels a copy."""
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    arrays = []
    for name in _ARRAYS:
        column = batch.column(name)
        is_flat = not pa.types.is_fixed_size_list(column.type)
        values = _view(column if is_flat else column.values)
        arrays.append(values if is_flat else values.reshape(len(batch), -1))
    labels, widths, heights, shard_ids, extents, digests, ranges = arrays
    extents = extents.reshape(len(batch), -1, 2)
    keys = Keys(batch.column("key"))
    rest = (batch.column("meta"), batch.column("members"), files)
    index = SampleIndex(keys, labels.copy(), widths, heights, shard_ids, extents, digests, ranges, *rest)
    index.cached = path
    return index


def _map_again(path: Path, files: list[str]) -> SampleIndex | None:
    """Return the index that was pickled by its cached file; None if the file is on another machine, or was removed."""
    try:
        return _map(path, files)
    except (OSError, pa.ArrowException):
        return None


def _view(array: pa.Array) -> np.ndarray:
    """Return the numbers of an array without nulls; `Array.to_numpy` imports pandas: 0.2 s and 50 MB."""
    whole = np.frombuffer(array.buffers()[1], np.dtype(str(array.type)))
    return whole[array.offset : array.offset + len(array)]


def _flat_view(array: np.ndarray) -> memoryview:
    return memoryview(cast(Any, array.reshape(-1)))
