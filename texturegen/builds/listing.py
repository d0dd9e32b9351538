"""The list of a source's files, written once so that every job of a build reads it instead of searching again.

Listing a million files takes seconds on a disk and minutes on a network. And a file that appears or disappears during
the build would shift the positions of all files after it.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from texturegen.errors import DamagedError
from texturegen.shards.layout import PARTS
from texturegen.sources import Source
from texturegen.storage.atomic import write_atomically


class StoredPaths(Sequence[str]):
    """Paths in a memory-mapped Arrow file: a worker's memory does not grow with the data set.

    Parameters
    ----------
    file : Path
        Written by `write_listing`.

    Raises
    ------
    DamagedError
        The file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._column = pa.ipc.open_file(pa.memory_map(str(file))).read_all().column("path")
        except (pa.ArrowInvalid, KeyError):
            raise DamagedError(f"{file}: damaged; build into another directory") from None

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


def write_listing(directory: Path, source: Source) -> None:
    """Write the paths of a source that lists files to DIRECTORY/parts/; do nothing for other sources."""
    listing = source.listing
    if listing is not None:
        # As bytes: file names need not be valid UTF-8.
        table = pa.table({"path": pa.array(map(os.fsencode, listing.paths), pa.binary())})
        write_atomically(_listing_file(directory, source.digest), partial(_write, table))


def read_paths(directory: Path, digest: str) -> StoredPaths | None:
    """Return the paths in DIRECTORY/parts/ of the source with this digest; None if there are none."""
    file = _listing_file(directory, digest)
    return StoredPaths(file) if file.is_file() else None


def _listing_file(directory: Path, digest: str) -> Path:
    return directory / PARTS / f"files-{digest[:16]}.arrow"


def _write(table: pa.Table, f: Any) -> None:
    with pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table)
