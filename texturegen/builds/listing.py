"""The list of a source's files, written once where all jobs of a build can read it.

A job then looks at its own images only: to list a million files takes seconds on a disk and minutes on a network, and
a file that came or went since would move all behind it to other places.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from texturegen.errors import UserError
from texturegen.shards.layout import PARTS
from texturegen.sources import Source
from texturegen.storage.atomic import write_atomically


class StoredPaths(Sequence[str]):
    """Paths in a file that is mapped, not read: a worker's memory does not grow with the data set."""

    def __init__(self, file: Path) -> None:
        try:
            self._column = pa.ipc.open_file(pa.memory_map(str(file))).read_all().column("path")
        except (pa.ArrowInvalid, KeyError):
            raise UserError(f"{file}: damaged; build into another directory") from None

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
    """Write the list of a source that has one to DIRECTORY/parts/, where `read_paths` finds it."""
    listing = source.listing
    if listing is not None:
        # As bytes, because file names may be no UTF-8.
        table = pa.table({"path": pa.array(map(os.fsencode, listing.paths), pa.binary())})
        write_atomically(_place(directory, source.digest), partial(_write, table))


def read_paths(directory: Path, digest: str) -> StoredPaths | None:
    """The list in DIRECTORY/parts/ of the source with this digest; None where there is none."""
    file = _place(directory, digest)
    return StoredPaths(file) if file.is_file() else None


def _place(directory: Path, digest: str) -> Path:
    return directory / PARTS / f"files-{digest[:16]}.arrow"


def _write(table: pa.Table, f: Any) -> None:
    with pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table)
