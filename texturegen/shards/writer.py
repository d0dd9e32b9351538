"""Write one shard so that it is there whole or not at all, with the same bytes on every machine.

Commit order: temporary tar, fsync, rename; its manifest part; last its stats file, which is the commit mark.
Python's tarfile writes the tar: importing webdataset for its TarWriter would load torch into every build worker.
"""

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from texturegen.shards.layout import (
    IMAGE_EXTENSIONS,
    KEY,
    MANIFEST_SCHEMA,
    MEMBER,
    PARTS,
    RESERVED,
    shard_name,
    texture_member,
)
from texturegen.storage.atomic import sha256_of, sync_directory, temporary_name, write_atomically, write_json


class ShardWriter:
    """A context that collects samples and rows; `commit()` puts them under their final names.

    Leaving the context without a commit removes the temporary file.
    """

    def __init__(self, directory: Path, number: int, fingerprint: str) -> None:
        self.directory, self.number, self.fingerprint = directory, number, fingerprint
        self.name = shard_name(number)
        self.samples = 0
        self._rows: list[dict[str, Any]] = []
        self._temporary = temporary_name(directory / self.name)
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by commit or __exit__)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(
        self,
        key: str,
        image: bytes,
        ext: str,
        textures: list[bytes],
        label: int,
        texture_ext: str = "png",
        members: Mapping[str, bytes] | None = None,
    ) -> list[dict[str, Any]]:
        """Append one sample; return the place of its members, as manifest columns: a dict per texture (or one).

        `members`: extension -> bytes, passed through as they are. Raises ValueError, before anything is written, for a
        key, extension or member that the contract does not allow.
        """
        members = members or {}
        if not KEY.fullmatch(key):
            raise ValueError(f"the key {key!r} is not of at most 80 letters, digits, _ and -, with / between them")
        if not {ext, texture_ext} <= {*IMAGE_EXTENSIONS}:
            raise ValueError(f"{key}: a shard cannot hold images of type {ext!r} or {texture_ext!r}")
        for name in members:
            if not MEMBER.fullmatch(name) or RESERVED.fullmatch(name) or len(f"{key}.{name}") > tarfile.LENGTH_NAME:
                raise ValueError(f"{key}: a member with the extension {name!r} cannot be passed through")
        image_place = _columns("image", ext, self._member(f"{key}.{ext}", image))
        places: list[dict[str, Any]] = [{}]
        if textures:
            written = [self._member(texture_member(key, i, texture_ext), data) for i, data in enumerate(textures)]
            places = [{"index": i, **_columns("texture", texture_ext, place)} for i, place in enumerate(written)]
        others = {"cls": str(label).encode(), **members}
        first = [{"ext": name, **self._member(f"{key}.{name}", data)} for name, data in sorted(others.items())]
        self.samples += 1
        places[0]["members"] = first
        return [{"shard": self.name, **image_place, **place} for place in places]

    def add_row(self, **columns: Any) -> None:
        """Add one manifest row; columns not given are null."""
        self._rows.append(columns)

    def commit(self, seconds: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Make the shard final and return its stats: what `build.json` lists of it, and the `seconds` per stage."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        failed = sum(row["status"] != "ok" for row in self._rows)
        stats = {
            "name": self.name,
            "sha256": sha256_of(self._temporary),
            "bytes": self._temporary.stat().st_size,
            "samples": self.samples,
            "textures": sum(row["status"] == "ok" and row.get("index") is not None for row in self._rows),
            "failed": failed,
            "seconds": dict(seconds or {}),
        }
        os.replace(self._temporary, self.directory / self.name)
        sync_directory(self.directory)
        parts = self.directory / PARTS
        table = pa.Table.from_pylist(self._rows, schema=MANIFEST_SCHEMA)
        write_atomically(parts / f"{self.number:06d}.parquet", lambda f: pq.write_table(table, f))
        write_json(parts / f"{self.number:06d}.json", {"fingerprint": self.fingerprint, **stats})
        return stats

    def _member(self, name: str, data: bytes) -> dict[str, Any]:
        info = tarfile.TarInfo(name)  # mtime 0, owner 0, mode 0644: nothing of the machine or the hour
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return {"offset": self._tar.offset - padded, "size": len(data), "sha256": hashlib.sha256(data).digest()}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(self.directory)  # a full disk does not say where
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()


def _columns(member: str, ext: str, place: dict[str, Any]) -> dict[str, Any]:
    return {f"{member}_ext": ext, **{f"{member}_{name}": value for name, value in place.items()}}


def join_manifests(parts: Sequence[Path], f: IO[bytes]) -> None:
    """Write one manifest of all parts, one at a time, so that memory does not grow with the data set."""
    with pq.ParquetWriter(f, MANIFEST_SCHEMA) as manifest:
        for part in parts:
            manifest.write_table(pq.read_table(part))
