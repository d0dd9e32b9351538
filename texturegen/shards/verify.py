"""Compare a shard directory with its manifest and build.json, in one pass over the tars."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from texturegen.errors import DamagedError, UserError
from texturegen.shards.build_json import read_build
from texturegen.shards.checks import check_rows
from texturegen.shards.index import find_stale
from texturegen.shards.layout import BUILD, MANIFEST
from texturegen.shards.manifest import COLUMNS, parse_meta, read_manifest, select_ok
from texturegen.shards.members import list_members
from texturegen.shards.sample_index import SampleIndex
from texturegen.storage.arrow import open_for_arrow
from texturegen.storage.atomic import sha256_of
from texturegen.storage.image import decode_member
from texturegen.storage.names import printable
from texturegen.storage.ranges import local_path, reason_of
from texturegen.storage.sealed import CHECKSUM
from texturegen.storage.tar import BLOCK, CHUNK, describe, end_of_tar, find_faults, hash_and_compare, make_header
from texturegen.system.threads import count_cpus, run_in_threads

_CHECKSUM = "checksum differs from build.json: the file was changed or damaged"


@dataclass(frozen=True)
class Report:
    """The faults of a shard directory.

    Attributes
    ----------
    faults : dict of str to list of str
        File name -> one sentence per fault; only files with faults.
    damaged : list of int
        Indices of the shards that are missing or whose bytes differ from those that were built.
    unchecked : list of str
        What was not checked, one sentence each.
    """

    faults: dict[str, list[str]]
    damaged: list[int]
    unchecked: list[str] = field(default_factory=list)


def verify(
    directory: str | Path,
    progress: Callable[[int], object] = lambda samples: None,
    workers: int | None = None,
    deep: bool = False,
) -> list[str]:
    """Find everything that is wrong with a shard directory.

    Parameters
    ----------
    directory : str or Path
        A finished shard directory.
    progress : callable
        Called with the sample count of each shard after its check.
    workers : int, optional
        Number of threads, each of which checks one shard at a time; by default one per CPU.
    deep : bool
        Also decode every image and texture, and compare size, label and checksum of each member with the manifest.

    Returns
    -------
    list of str
        One sentence per fault, which names the file and the key or member. If the list is empty, `open_shards` accepts
        the directory; with `deep`, every sample can also be decoded.

    Raises
    ------
    MissingError
        The directory holds no finished build.
    UserError
        This version does not read the directory's format.

    Examples
    --------
    >>> import texturegen
    >>> texturegen.verify("shards", deep=True)
    []
    >>> with open("shards/shard-000001.tar", "r+b") as f:
    ...     _ = f.seek(512), f.write(b"damage")
    >>> for fault in texturegen.verify("shards"):
    ...     print(fault)
    shards/shard-000001.tar: checksum differs from build.json: the file was changed or damaged
    shards/shard-000001.tar: shapes-train-00000020.png: its bytes differ from those that were written
    """
    faults = inspect(directory, progress, workers, deep).faults
    return [sentence for sentences in faults.values() for sentence in sentences]


def inspect(
    directory: str | Path,
    progress: Callable[[int], object] = lambda samples: None,
    workers: int | None = None,
    deep: bool = False,
) -> Report:
    """Return the faults of a shard directory by file. Parameters and exceptions are those of `verify`.

    Every shard is read once, and its SHA-256 is compared with build.json. If it is equal, only the headers of the tar
    are compared with the manifest. If it differs, every member is hashed, so that each damaged one is named. Links and
    paths in a tar are never followed or opened.
    """
    directory = local_path(directory)
    faults: dict[str, list[str]] = {}
    try:
        build = read_build(directory)
    except DamagedError as error:
        return Report({BUILD: [str(error)]}, [])
    listed = [shard["name"] for shard in build["shards"]]
    table, manifest_faults = _read_table(directory / MANIFEST, build["manifest_sha256"])
    index = None
    if table is not None:
        index, found = check_rows(table, build, listed)
        manifest_faults += found
        manifest_faults += [] if index is None else _find_bad_metas(index)
    if manifest_faults:
        faults[MANIFEST] = [f"{directory / MANIFEST}: {fault}" for fault in manifest_faults]
    ok = None if table is None or index is None else select_ok(table)
    per_sample = max(build["recipe"]["per_image"], 1)
    progress_lock = threading.Lock()

    def check(number: int) -> _Found:
        shard = build["shards"][number]
        members = None
        if ok is not None and index is not None:
            first, end = np.searchsorted(index.shard_ids, [number, number + 1]).tolist()
            members = list_members(ok.slice(first * per_sample, (end - first) * per_sample))
        found = _check_shard(directory / shard["name"], shard, members, deep)
        with progress_lock:
            progress(shard["samples"])
        return found

    results = run_in_threads(check, len(listed), workers or count_cpus())
    build_faults = [f"{directory / BUILD}: {fault}" for found in results for fault in found.build_faults]
    if build_faults:
        faults[BUILD] = build_faults
    for name, result in zip(listed, results, strict=True):
        if result.faults:
            faults[name] = [f"{directory / name}: {fault}" for fault in result.faults]
    if ok is not None:
        for name in find_stale(directory, build, ok):
            faults[name] = [
                f"{directory / name}: differs from what the manifest gives; write it again with `texturegen index`"
            ]
    with_file = {shard["name"] for shard in build["shards"] if shard["bytes"]}
    for path in sorted(directory.glob("*.tar")):
        if path.name not in with_file:
            faults[path.name] = [
                f"{directory}/{printable(path.name)}: not in build.json, but programs that read *.tar would read it; "
                "remove it"
            ]
    unchecked = []
    if CHECKSUM not in build:
        unchecked.append(f"{BUILD} has no checksum, so class names, recipe and versions were not checked")
    if not deep:
        unchecked.append("images were not decoded, nor sizes and labels compared with the manifest; --deep does that")
    return Report(faults, [number for number, result in enumerate(results) if result.is_damaged], unchecked)


class _Found(NamedTuple):
    """Result of the check of one shard."""

    is_damaged: bool  # whether its bytes differ from those that were built
    faults: list[str]
    build_faults: list[str]  # faults of build.json that the check has revealed


def _read_table(path: Path, sha256: str) -> tuple[pa.Table | None, list[str]]:
    """Return COLUMNS of the manifest, or None if it cannot be read, and the faults of the file."""
    if not path.is_file():
        return None, ["missing; copy it again, or build into a new directory"]
    faults = []
    try:
        if sha256_of(path) != sha256:
            faults.append(_CHECKSUM)
        table = read_manifest(path, COLUMNS)
        # `Shards.manifest` reads the other columns too, so they are checked here, one row group at a time.
        others = [name for name in pq.read_schema(open_for_arrow(path)).names if name not in COLUMNS]
        for group in range(pq.read_metadata(open_for_arrow(path)).num_row_groups):
            read_manifest(path, others, group)
        return table, faults
    except DamagedError as error:
        return None, [*faults, str(error)]
    except OSError as error:
        return None, [*faults, f"cannot be read ({reason_of(error)})"]


def _find_bad_metas(index: SampleIndex) -> list[str]:
    faults = []
    for start in range(0, len(index.keys), 4096):
        for i, text in enumerate(index.metas.slice(start, 4096).to_pylist(), start):
            if parse_meta(text) is None:
                faults.append(f"{printable(index.keys[i])}: its meta is not a JSON object")
    return faults


def _check_shard(path: Path, shard: dict[str, Any], members: pa.Table | None, deep: bool) -> _Found:
    if not shard["bytes"]:  # all of its images failed
        return _Found(False, [], [])
    if not path.is_file():
        return _Found(True, ["missing"], [])
    try:
        with open(path, "rb", buffering=0) as f:
            return _check_open_shard(f, path.stat().st_size, shard, members, deep)
    except OSError as error:
        return _Found(True, [f"cannot be read ({reason_of(error)})"], [])


def _check_open_shard(f: IO[bytes], length: int, shard: dict[str, Any], members: pa.Table | None, deep: bool) -> _Found:
    names: list[str] = [] if members is None else members["name"].to_pylist()
    sizes = np.empty(0, np.int64) if members is None else members["size"].to_numpy()
    sha256, is_expected = hash_and_compare(f, np.array([name.encode() for name in names], "S100"), sizes)
    is_damaged = sha256 != shard["sha256"]
    faults = [_CHECKSUM] if is_damaged else []
    if length != shard["bytes"]:
        faults = [_CHECKSUM if is_damaged else "its size differs from build.json"]
        faults[0] += f" ({length} bytes, but {shard['bytes']} were written)"
    if members is None:
        return _Found(is_damaged, faults, [])
    member_faults: dict[str, str] = {}  # only the first fault of each member
    tar_faults: list[str] = []
    if is_damaged:
        written = hashlib.sha256()
        member_faults |= dict(_check_members(f, members, deep, written))
        if is_expected and not member_faults and written.hexdigest() == sha256:
            wrong = f"the sha256 of {shard['name']} is wrong, because every byte of that shard agrees with the manifest"
            return _Found(False, [], [f"{wrong}; copy {BUILD} again"])
    elif deep:
        member_faults |= dict(_check_members(f, members, deep, None))
    if not is_expected:
        extents = zip(members["offset"].to_pylist(), members["size"].to_pylist(), strict=True)
        expected = dict(zip(names, extents, strict=True))
        for member, fault in find_faults(f, length, expected):
            if member in expected:
                member_faults.setdefault(member, fault)
            else:
                tar_faults.append(describe(member, fault))
    if is_damaged and not member_faults and not tar_faults:
        faults[0] += "; all members are intact, and the damage is between them"
    named = [describe(name, member_faults[name]) for name in names if name in member_faults]
    return _Found(is_damaged, faults + tar_faults + named, [])


def _check_members(f: IO[bytes], members: pa.Table, deep: bool, written: Any) -> Iterator[tuple[str, str]]:
    """Yield (member, fault) for each damaged member; with `deep`, also decode images and compare labels.

    written : hash, updated with the bytes of a tar that the writer would make of the members' present data, or None.
    """
    end = 0
    for batch in members.to_batches(max_chunksize=4096):
        for member in batch.to_pylist():
            name, size = member["name"], member["size"]
            is_decoded = deep and (member["width"] is not None or member["label"] is not None)
            digest, parts, left = hashlib.sha256(), [], size
            if written is not None:
                written.update(make_header(name, size))
            f.seek(member["offset"])
            while left > 0 and (data := f.read(min(left, CHUNK))):
                digest.update(data)
                if written is not None:
                    written.update(data)
                if is_decoded:
                    parts.append(data)
                left -= len(data)
            if written is not None:
                written.update(bytes(-size % BLOCK))
            end = member["offset"] + size + -size % BLOCK
            if digest.digest() != member["sha256"]:
                yield name, "its bytes differ from those that were written"
            elif is_decoded and (fault := _decode(b"".join(parts), member)):
                yield name, fault
    if written is not None:
        written.update(bytes(end_of_tar(end) - end))


def _decode(data: bytes, member: dict[str, Any]) -> str | None:
    """Return what is wrong with the content of an image, a texture or a label."""
    if member["width"] is None:
        label = member["label"]
        return None if data == str(label).encode() else f"is {printable(data[:20])}, but the manifest records {label}"
    try:
        height, width = decode_member(data).shape[:2]
    except UserError as error:
        return str(error)
    if (width, height) == (member["width"], member["height"]):
        return None
    return f"is {width}x{height} pixels, but the manifest records {member['width']}x{member['height']}"
