"""The list of a source's files, written once so that every job of a build reads it instead of searching again.

Listing a million files takes seconds on a disk and minutes on a network. And a file that appears or disappears during
the build would shift the positions of all files after it.
"""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, overload

import pyarrow as pa

from texturegen.errors import DamagedError
from texturegen.shards.layout import PARTS
from texturegen.sources import Listing, Source
from texturegen.sources.tar_listing import ABOUT, TarListing
from texturegen.storage.arrow import map_for_arrow
from texturegen.storage.atomic import write_atomically

_LISTED_AT = b"listed_at"
_END = b"ARROW1"  # of an Arrow file
_DIGEST_SIZE = hashlib.sha256().digest_size
_CENTURY = 10**9 * 60 * 60 * 24 * 365 * 100  # ns


class StoredPaths(Sequence[str]):
    """Paths in a column of a memory-mapped Arrow file: a worker's memory does not grow with the data set."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [os.fsdecode(path) for path in self._column[index].to_pylist()]
        return os.fsdecode(self._column[index].as_py())


def write_listing(directory: Path, source: Source, compare_times: bool = True) -> None:
    """Write the listing of a source that lists files or tars to DIRECTORY/parts/; do nothing for other sources.

    Without `compare_times`, jobs compare only the sizes of files with the listing: the parts of an array may read
    copies of the data set that were made at different times.
    """
    if source.index is not None:
        index = source.index if compare_times else replace(source.index, listed_at=time.time_ns() + _CENTURY)
        write_atomically(_listing_file(directory, source.digest), partial(_write, index.to_table()))
    listing = source.listing
    if listing is None:
        return
    # As bytes: file names need not be valid UTF-8.
    columns = {
        "path": pa.array(map(os.fsencode, listing.paths), pa.binary()),
        "size": pa.array(listing.sizes, pa.int64()),
    }
    if compare_times and listing.times:
        columns["time"] = pa.array(listing.times, pa.int64())
    table = pa.table(columns).replace_schema_metadata({_LISTED_AT: str(listing.listed_at).encode()})
    write_atomically(_listing_file(directory, source.digest), partial(_write, table))


def read_listing(directory: Path, source: Mapping[str, Any]) -> Listing | TarListing | None:
    """Return the listing in DIRECTORY/parts/ of a source, as `Plan.source` describes it; None if there is none.

    Raises
    ------
    DamagedError
        The file cannot be read.
    """
    file = _listing_file(directory, source["digest"])
    if not file.is_file():
        return None
    try:
        table = _open(file)
        if ABOUT in (table.schema.metadata or {}):
            return TarListing.from_table(table)
        sizes = table["size"].combine_chunks().to_numpy()
        times = table["time"].combine_chunks().to_numpy() if "time" in table.column_names else ()
        listed_at = int(table.schema.metadata[_LISTED_AT])
        return Listing(StoredPaths(table["path"]), source["classes"], sizes, times, listed_at)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        raise DamagedError(f"{file}: damaged; build into another directory") from None


def _listing_file(directory: Path, digest: str) -> Path:
    return directory / PARTS / f"files-{digest[:16]}.arrow"


def _write(table: pa.Table, f: IO[bytes]) -> None:
    """Write an Arrow file, followed by its SHA-256."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    data = stream.getvalue()
    f.write(data)
    f.write(hashlib.sha256(data).digest())


def _open(file: Path) -> pa.Table:
    """Return the mapped table of a listing; ValueError if its checksum differs. texturegen 0.1.0 wrote none."""
    data = map_for_arrow(file).read_buffer()
    size = data.size - _DIGEST_SIZE
    if size < 0:
        raise ValueError
    if data.slice(data.size - len(_END)).to_pybytes() != _END:
        data, digest = data.slice(0, size), data.slice(size)
        if hashlib.sha256(data).digest() != digest.to_pybytes():
            raise ValueError
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()
