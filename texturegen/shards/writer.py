"""Write a shard atomically, with the same bytes on every machine.

A commit writes the tar (temporary file, fsync, rename), then its manifest rows, then its stats, which mark the shard as
finished. webdataset's TarWriter would load torch into every build worker, so the tar is written by Python's tarfile.
"""

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from texturegen.errors import DamagedError
from texturegen.shards.layout import (
    IMAGE_EXTENSIONS,
    KEY,
    MANIFEST_SCHEMA,
    MAX_KEY,
    MEMBER,
    PARTS,
    PREFIX,
    RESERVED,
    shard_name,
    texture_member,
)
from texturegen.shards.manifest import has_failed
from texturegen.storage.arrow import open_for_arrow
from texturegen.storage.atomic import sha256_of, sync_directory, temporary_name, write_atomically, write_json
from texturegen.storage.sealed import read_sealed, seal

ROWS_CHECKSUM = "rows_sha256"  # in the stats file: SHA-256 of the rows file
STATS_CHECKSUM = "stats_sha256"  # of the stats file's own content


class ShardWriter:
    """Writer of one shard, as a context manager; leaving it without `commit` removes the temporary file.

    Parameters
    ----------
    directory : Path
        The shard directory; `commit` needs the subdirectory parts/.
    number : int
        Index of the shard, from 0.
    fingerprint : str
        Identifies the build in the stats file.
    prefix : str
        First part of the file name.

    Attributes
    ----------
    name : str
        File name of the tar.
    samples : int
        Samples added so far.
    """

    def __init__(self, directory: Path, number: int, fingerprint: str, prefix: str = PREFIX) -> None:
        self.directory, self.number, self.fingerprint = directory, number, fingerprint
        self.name = shard_name(number, prefix)
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
        """Append one sample to the tar.

        Parameters
        ----------
        key : str
            Name of the sample, which matches `layout.KEY`.
        image : bytes
            The encoded image.
        ext : str
            Its extension, one of `layout.IMAGE_EXTENSIONS`.
        textures : list of bytes
            The K encoded textures.
        label : int
            Class index, -1 for an unlabelled image.
        texture_ext : str
            Extension of the textures.
        members : mapping of str to bytes, optional
            Extra members to pass through, by extension.

        Returns
        -------
        list of dict
            Manifest columns with the offsets, sizes and checksums of the members: one dict per texture, or a single one
            without textures.

        Raises
        ------
        ValueError
            The key, an extension or a member is not allowed; nothing is written.
        """
        members = members or {}
        if not KEY.fullmatch(key):
            raise ValueError(f"invalid key {key!r}: use at most {MAX_KEY} letters, digits, _ and -, and / between them")
        if not {ext, texture_ext} <= {*IMAGE_EXTENSIONS}:
            raise ValueError(f"{key}: a shard holds images of type png, jpg or webp, not {ext!r} or {texture_ext!r}")
        for name in members:
            if not MEMBER.fullmatch(name) or RESERVED.fullmatch(name) or len(f"{key}.{name}") > tarfile.LENGTH_NAME:
                raise ValueError(f"{key}: cannot pass through a member with the extension {name!r}")
        image_columns = _prefix("image", ext, self._append(f"{key}.{ext}", image))
        rows: list[dict[str, Any]] = [{}]
        if textures:
            written = [self._append(texture_member(key, i, texture_ext), data) for i, data in enumerate(textures)]
            rows = [{"index": i, **_prefix("texture", texture_ext, columns)} for i, columns in enumerate(written)]
        others = {"cls": str(label).encode(), **members}
        rows[0]["members"] = [
            {"ext": name, **self._append(f"{key}.{name}", data)} for name, data in sorted(others.items())
        ]
        self.samples += 1
        return [{"shard": self.name, **image_columns, **columns} for columns in rows]

    def add_row(self, **columns: Any) -> None:
        """Append one manifest row; missing columns are null."""
        self._rows.append(columns)

    def commit(self, seconds: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Rename the shard to its final name, and write its rows and stats.

        Parameters
        ----------
        seconds : mapping of str to float, optional
            Time spent per stage, recorded in the stats.

        Returns
        -------
        dict
            The stats: name, sha256, bytes (0 without samples: then there is no file), samples, textures, failed and
            seconds.
        """
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        ok = [row for row in self._rows if not has_failed(row)]
        stats = {
            "name": self.name,
            "sha256": sha256_of(self._temporary) if self.samples else hashlib.sha256().hexdigest(),
            "bytes": self._temporary.stat().st_size if self.samples else 0,
            "samples": self.samples,
            "textures": sum(row.get("index") is not None for row in ok),
            "failed": len(self._rows) - len(ok),
            "seconds": dict(seconds or {}),
        }
        if self.samples:
            os.replace(self._temporary, self.directory / self.name)
        else:  # several readers fail on a tar without members, so a shard whose images all failed has no file
            (self.directory / self.name).unlink(missing_ok=True)
        sync_directory(self.directory)
        table = pa.Table.from_pylist(self._rows, schema=MANIFEST_SCHEMA)
        write_atomically(rows_file(self.directory, self.number), lambda f: pq.write_table(table, f))
        write_stats(self.directory, self.number, self.fingerprint, stats)
        return stats

    def _append(self, name: str, data: bytes) -> dict[str, Any]:
        """Append one member; return its offset, size and sha256."""
        info = tarfile.TarInfo(name)  # mtime 0, owner 0, mode 0644 on any machine at any time
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return {"offset": self._tar.offset - padded, "size": len(data), "sha256": hashlib.sha256(data).digest()}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(self.directory)  # ENOSPC carries no file name
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()


def _prefix(member: str, ext: str, columns: dict[str, Any]) -> dict[str, Any]:
    return {f"{member}_ext": ext, **{f"{member}_{name}": value for name, value in columns.items()}}


def write_stats(directory: Path, number: int, fingerprint: str, stats: Mapping[str, Any]) -> None:
    """Mark a shard, whose rows file is written, as committed by the build with this fingerprint."""
    sums = {"fingerprint": fingerprint, ROWS_CHECKSUM: sha256_of(rows_file(directory, number))}
    write_json(stats_file(directory, number), seal({**sums, **stats}, STATS_CHECKSUM))


def read_stats(directory: Path, number: int, fingerprint: str) -> dict[str, Any] | None:
    """Return the stats of a shard; None unless that build committed it and its files are whole.

    Of the tar only the size is compared, because hashing all tars would take as long as reading the data set. A power
    cut can leave a renamed file short. texturegen 0.1.0 wrote no checksums.
    """
    rows = rows_file(directory, number)
    try:
        stats = read_sealed(stats_file(directory, number), "build again", STATS_CHECKSUM, since=ROWS_CHECKSUM)
        is_whole = (
            stats.pop("fingerprint") == fingerprint
            and (not stats["bytes"] or (directory / stats["name"]).stat().st_size == stats["bytes"])
            and stats.pop(ROWS_CHECKSUM, None) in (None, sha256_of(rows))
            and pq.read_metadata(open_for_arrow(rows)).num_rows > 0
        )
    except (OSError, DamagedError, KeyError, pa.ArrowInvalid):
        return None
    return stats if is_whole else None


def rows_file(directory: Path, number: int) -> Path:
    """Return the path of a shard's manifest rows while its directory is unfinished."""
    return directory / PARTS / f"{number:06d}.parquet"


def stats_file(directory: Path, number: int) -> Path:
    """Return the path of a shard's stats while its directory is unfinished; the file marks the shard as committed."""
    return directory / PARTS / f"{number:06d}.json"
