"""The samples of all tars of a data set in one Arrow table, which other processes map instead of reading the tars.

A row is a sample: its key and, for each of its members, the extension, the offset and the size. Mapped from a file, it
costs a process no memory of its own, however many samples there are.
"""

import json
import re
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa

from texturegen.console import note, warn
from texturegen.errors import UserError
from texturegen.sources.files import retry
from texturegen.sources.patterns import MAX_REQUESTS, File, buffered, find_files
from texturegen.sources.tar_index import NOT_FOLLOWED, TarIndex, index_tar
from texturegen.sources.tar_labels import LabelRule
from texturegen.sources.tar_streams import SUFFIXES, UNKNOWN_SIZE, find_compression, open_stream
from texturegen.storage.names import printable, to_text
from texturegen.storage.ranges import is_url, open_reader

ABOUT = b"tars"  # in the metadata of the table
MAX_SEARCHED = 100  # samples in which the first label is looked for
MAX_LABEL = 2**24  # bytes of a member with a label
# Bytes per read while indexing. A remote store takes as long to answer as to send 4 MB; a disk reads pages.
REMOTE_CHUNK, LOCAL_CHUNK = 2**22, 2**13


class Member(NamedTuple):
    """A file of a sample; the offset is `tar_index.NOT_FOLLOWED` for a link, a device or a pipe."""

    ext: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarListing:
    """Tars and their samples.

    Attributes
    ----------
    root : as the user gave it.
    files : the tars, in order.
    compressions : of each tar, "" for none; see `tar_streams`.
    digests : of each tar, `TarIndex.digest`.
    counts : samples of each tar.
    ignored : members that belong to no sample, of each tar.
    listed_at : when the tars were listed, in ns since 1970.
    table : the samples: key (binary), exts, offsets and sizes (lists).
    classes : names of the classes if the labels are names that were collected from the tars, else None.
    """

    root: str
    files: Sequence[File]
    compressions: list[str]
    digests: list[str]
    counts: list[int]
    ignored: list[list[str]]
    listed_at: int
    table: pa.Table
    classes: list[str] | None = None

    @cached_property
    def ends(self) -> list[int]:
        """Number of the first sample behind each tar."""
        return list(accumulate(self.counts))

    @cached_property
    def _columns(self) -> dict[str, Any]:
        columns = {name: self.table[name] for name in self.table.column_names}
        return {k: c.chunk(0) if c.num_chunks == 1 else c.combine_chunks() for k, c in columns.items()}

    def key(self, index: int) -> str:
        """Return the key of a sample as it is in the tar."""
        return bytes(self._columns["key"][index].as_py()).decode("utf-8", "surrogateescape")

    def members(self, index: int) -> list[Member]:
        """Return the members of a sample, in the order of the tar."""
        columns = (self._columns[name][index].as_py() for name in ("exts", "offsets", "sizes"))
        return [Member(*member) for member in zip(*columns, strict=True)]

    def to_table(self) -> pa.Table:
        """Return the listing as one table, to be written to a file."""
        about = {
            "root": self.root,
            "files": [list(file) for file in self.files],
            "compressions": self.compressions,
            "digests": self.digests,
            "counts": self.counts,
            "ignored": self.ignored,
            "listed_at": self.listed_at,
            "classes": self.classes,
        }
        return self.table.replace_schema_metadata({ABOUT: json.dumps(about).encode()})

    @classmethod
    def from_table(cls, table: pa.Table) -> "TarListing":
        """Return the listing that `to_table` stored; ValueError, KeyError or TypeError if it is damaged."""
        about = json.loads(table.schema.metadata[ABOUT])
        files = [File(*file) for file in about.pop("files")]
        listing = cls(files=files, table=table, **about)
        if sum(listing.counts) != len(table):
            raise ValueError("the table has another number of samples than its tars")
        return listing


def make_table(tars: Sequence[TarIndex]) -> pa.Table:
    """Return the samples of tars as the table of a `TarListing`."""
    parts = []
    for tar in tars:
        first = pa.array(tar.first, pa.int64())
        columns = {
            "key": pa.array([key.encode("utf-8", "surrogateescape") for key in tar.keys], pa.large_binary()),
            "exts": pa.LargeListArray.from_arrays(first, pa.array(tar.exts, pa.string())),
            "offsets": pa.LargeListArray.from_arrays(first, pa.array(tar.offsets, pa.int64())),
            "sizes": pa.LargeListArray.from_arrays(first, pa.array(tar.sizes, pa.int64())),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts).combine_chunks()


def list_tars(root: str, with_tar: bool, rule: LabelRule | None) -> TarListing:
    """Index all tars by their headers, and collect the names of their classes if the labels are names.

    Parameters
    ----------
    root : a folder, a tar, a pattern or a URL; see `webdataset`.
    with_tar : whether the name of the tar is a part of each key: the same key may then be in several tars.
    rule : where the labels are; None: the names of the classes are known already.

    Raises
    ------
    UserError : there are no samples; a tar is damaged; keys are not unique.
    """
    listed_at = time.time_ns()
    files = find_files(root, SUFFIXES)
    tars = _index(files, with_tar)
    if not any(tar.samples.keys for tar in tars):
        raise UserError(f"{root}: there are no samples (members KEY.EXT) in the {len(files)} tar(s)")
    compressed = [file for file, tar in zip(files, tars, strict=True) if tar.compression]
    if compressed:
        warn(
            f"{len(compressed)} of {len(files)} tars are compressed, such as {tar_name(compressed[0])}: every worker "
            "decompresses a tar from its beginning to the images it needs; unpack them if the build is slow"
        )
    listing = TarListing(
        root,
        files,
        [tar.compression for tar in tars],
        [tar.samples.digest for tar in tars],
        [len(tar.samples.keys) for tar in tars],
        [tar.samples.ignored for tar in tars],
        listed_at,
        make_table([tar.samples for tar in tars]),
    )
    return listing if rule is None else _collect_labels(listing, rule)


class _Tar(NamedTuple):
    samples: TarIndex
    compression: str


def _index(files: Sequence[File], with_tar: bool) -> tuple[_Tar, ...]:
    """Index all tars; UserError if one is damaged, or two have the same key, or with `with_tar` the same name."""
    if any(is_url(file.path) for file in files):
        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            tars = tuple(pool.map(_index_one, files))
    else:
        tars = tuple(map(_index_one, files))
    if with_tar:
        stem, count = Counter(map(tar_stem, files)).most_common(1)[0]
        if count > 1:
            raise UserError(
                f"key=tar/key: {count} tars are called {printable(stem)}; rename them or read them one by one"
            )
        return tars
    seen: set[str] = set()
    for number, tar in enumerate(tars):
        repeated = seen.intersection(tar.samples.keys)
        if repeated:
            key = min(repeated)
            first = next(file for file, other in zip(files, tars[:number], strict=False) if key in other.samples.keys)
            raise UserError(
                f"the key {printable(key)} is in {first.path} and {files[number].path}; keys must be unique; put "
                "the name of the tar before each with --source-option key=tar/key"
            )
        seen.update(tar.samples.keys)
    return tars


def _index_one(file: File) -> _Tar:
    name = to_text(file.path)
    try:
        read = buffered(open_reader(file.path), file.size, REMOTE_CHUNK if is_url(file.path) else LOCAL_CHUNK)
        compression = find_compression(read(0, 8))
        if not compression:
            return _Tar(index_tar(name, read, file.size), "")
        stream = open_stream(file.path, compression, file.stamp)
        index = index_tar(name, stream, UNKNOWN_SIZE)
        stream(UNKNOWN_SIZE - 1, UNKNOWN_SIZE)  # to the end, where the checksum is compared
        return _Tar(index, compression)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error


def relocate(listing: TarListing, root: str) -> TarListing:
    """Return a listing for a copy of its tars elsewhere; UserError if names or sizes differ."""
    files = find_files(root, SUFFIXES)
    if [(tar_name(file), file.size) for file in files] != [(tar_name(file), file.size) for file in listing.files]:
        raise UserError(f"{root}: its tars are not those that this build began with; restore them")
    # With the original stamps, copies that are older than the listing pass, and later ones count as changed.
    copies = [file._replace(stamp=old.stamp) for file, old in zip(files, listing.files, strict=True)]
    return replace(listing, root=root, files=copies)


def _collect_labels(listing: TarListing, rule: LabelRule) -> TarListing:
    """Return the listing with the names of its classes, sorted, if its labels are names; else as it is."""
    labels = (_read_label(listing, index, rule) for index in range(min(sum(listing.counts), MAX_SEARCHED)))
    if not isinstance(next((label for label in labels if label is not None), None), str):
        return listing
    count = sum(listing.counts)
    note(f"reading the class names of {count} samples; give them with --classes FILE to skip this")
    if is_url(listing.files[0].path):
        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            found = list(pool.map(lambda index: _read_label(listing, index, rule), range(count)))
    else:
        found = [_read_label(listing, index, rule) for index in range(count)]
    return replace(listing, classes=sorted({name for name in found if isinstance(name, str)}))


def _read_label(listing: TarListing, index: int, rule: LabelRule) -> int | str | None:
    """Return the label of a sample, read alone; None if it has none that can be read: its image will say why."""
    number = bisect_right(listing.ends, index)
    wanted = [m for m in listing.members(index) if m.ext == rule.ext and m.offset != NOT_FOLLOWED]
    if not wanted or wanted[0].size > MAX_LABEL:
        return None
    member, file = wanted[0], listing.files[number]
    read = open_stream(file.path, listing.compressions[number], file.stamp)
    try:
        data = retry(lambda: read(member.offset, member.offset + member.size))
        return rule.read({member.ext: data})
    except OSError as error:
        raise UserError(f"{to_text(file.path)} cannot be read: {error.strerror or error}") from error
    except UserError:
        return None


def tar_name(file: File) -> str:
    """Return the name of a tar without its folder, and without the query of a URL, which may be a signature."""
    path = re.split("[?#]", file.path)[0] if is_url(file.path) else file.path
    return to_text(re.split(r"[/\\]", path)[-1])


def tar_stem(file: File) -> str:
    """Return the name of a tar without its suffixes, with _ for what a key cannot hold."""
    name = tar_name(file)
    suffix = next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), "")
    return re.sub(r"[^A-Za-z0-9_-]", "_", name.removesuffix(suffix))
