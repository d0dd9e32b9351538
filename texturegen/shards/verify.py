"""Prove that a shard directory holds what its manifest says, at the speed of the disk."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from texturegen.errors import UserError
from texturegen.shards.layout import BUILD, MANIFEST, MANIFEST_SCHEMA
from texturegen.shards.reader import read_build
from texturegen.storage.atomic import sha256_of
from texturegen.storage.image import MAX_PIXELS, decode_image
from texturegen.storage.tar import CHUNK, hash_and_compare, printable, walk
from texturegen.system.threads import count_cpus, run_in_threads

CHECKSUM_FAULT = "checksum differs from build.json: the file was changed or damaged"
PLACE = ("offset", "size", "sha256")
COLUMNS = ["key", "shard", "index", "label", "width", "height", "status", "members"]
COLUMNS += [f"{member}_{column}" for member in ("image", "texture") for column in ("ext", *PLACE)]
LARGEST_IMAGE = 6 * MAX_PIXELS  # bytes; without compression and with 16 bits per channel no image is larger


@dataclass(frozen=True)
class Report:
    """What was found wrong in a shard directory.

    Attributes
    ----------
    faults : file name -> a sentence per fault; files that are well are not in it.
    damaged : numbers of the shards whose bytes are not those of the build, or that are missing.
    """

    faults: dict[str, list[str]]
    damaged: list[int]


def verify(
    directory: str | Path,
    progress: Callable[[int], object] = lambda samples: None,
    workers: int | None = None,
    deep: bool = False,
) -> list[str]:
    """Return one sentence per fault of a shard directory, each naming its file; none when all is well.

    For what is checked, `workers`, `deep`, `progress` and what is raised see `inspect`.
    """
    faults = inspect(directory, progress, workers, deep).faults
    return [sentence for sentences in faults.values() for sentence in sentences]


def inspect(
    directory: str | Path,
    progress: Callable[[int], object] = lambda samples: None,
    workers: int | None = None,
    deep: bool = False,
) -> Report:
    """Check checksums, counts, and that each tar holds exactly the members of the manifest at the manifest's places.

    Every shard is read once and its sha256 compared with build.json. Where that is right no member is hashed: all its
    bytes are then those of the build. Where it differs every member is, so that each damaged image, texture, label or
    passed-through member is named. The headers of the tar are compared with the manifest in both cases; nothing in
    them is believed, no link followed and no path opened.

    Parameters
    ----------
    progress : called with the number of samples of each shard once it is checked.
    workers : threads, one shard at a time each; None is one per CPU.
    deep : also decode every image and texture, compare its width and height with the manifest, and its label.

    Raises UserError when there is no finished build to check.
    """
    directory = Path(directory)
    build = _read_build(directory)
    faults: dict[str, list[str]] = {}
    manifest, of_manifest = _read_manifest(directory / MANIFEST, build["manifest_sha256"])
    listed = [shard["name"] for shard in build["shards"]]
    rows: dict[str, list[pa.Table]] = {}
    if manifest is not None:
        is_ok = pc.fill_null(pc.equal(manifest["status"], "ok"), False)
        failed = manifest.num_rows - pc.sum(is_ok).as_py() if manifest.num_rows else 0
        manifest = manifest.filter(is_ok) if failed else manifest  # a filter copies, and it can be a gigabyte
        of_manifest += _compare_counts(manifest, failed, build)
        rows = _rows_by_shard(manifest)
        strange = sorted(rows.keys() - {*listed})
        of_manifest += [f"it has rows of {printable(name.encode())}, not listed by build.json" for name in strange]
    if of_manifest:
        faults[MANIFEST] = [f"{directory / MANIFEST}: {fault}" for fault in of_manifest]
    counting = threading.Lock()

    def check(number: int) -> tuple[bool, list[str]]:
        shard = build["shards"][number]
        members = None if manifest is None else _members(rows.get(shard["name"], []))
        found = _check_shard(directory / shard["name"], shard, members, deep)
        with counting:
            progress(shard["samples"])
        return found

    results = run_in_threads(check, len(listed), workers or count_cpus())
    for name, (_, found) in zip(listed, results, strict=True):
        if found:
            faults[name] = [f"{directory / name}: {fault}" for fault in found]
    for path in sorted(directory.glob("*.tar")):
        if path.name not in listed:
            faults[path.name] = [f"{path}: not in build.json, but tools that read *.tar read it; remove it"]
    return Report(faults, [number for number, (damaged, _) in enumerate(results) if damaged])


def _read_build(directory: Path) -> dict[str, Any]:
    """build.json, with all in it that is asked of it here; UserError when something is missing or makes no sense."""
    build = read_build(directory)
    try:
        wanted = [build["manifest_sha256"], *(shard[name] for shard in build["shards"] for name in ("name", "sha256"))]
        numbers = [build["recipe"]["per_image"], *(build["counts"][name] for name in ("samples", "textures", "failed"))]
        numbers += [shard[name] for shard in build["shards"] for name in ("bytes", "samples")]
    except (KeyError, TypeError) as error:
        raise UserError(f"{directory / BUILD}: damaged ({error!r}); copy it again or build again") from None
    if not all(isinstance(text, str) for text in wanted) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise UserError(f"{directory / BUILD}: damaged (a value is of the wrong kind); copy it again or build again")
    return build


def _read_manifest(path: Path, sha256: str) -> tuple[pa.Table | None, list[str]]:
    """The columns that are needed here, and the manifest's faults; None when it cannot be read."""
    if not path.is_file():
        return None, ["missing; build again into a new directory"]
    faults = []
    try:
        if sha256_of(path) != sha256:
            faults.append(CHECKSUM_FAULT)
        if not pq.read_schema(path).equals(MANIFEST_SCHEMA):
            return None, [*faults, "its columns are not those of a manifest; copy it again or build again"]
        table = pq.read_table(path, columns=COLUMNS)
        if faults:
            table.validate(full=True)  # damage can leave strings that are none, and lists that end before they begin
        return table, faults
    except (pa.ArrowException, OSError) as error:
        return None, [*faults, f"cannot be read ({str(error).splitlines()[0]})"]


def _compare_counts(ok: pa.Table, failed: int, build: dict[str, Any]) -> list[str]:
    counted = {
        "samples": pc.count_distinct(ok["key"]).as_py(),
        "textures": ok.num_rows - ok["index"].null_count,
        "failed": failed,
    }
    faults = [
        f"{count} {name}, but build.json counts {build['counts'][name]}"
        for name, count in counted.items()
        if build["counts"][name] != count
    ]
    if (broken := _first_broken_sample(ok, build["recipe"]["per_image"])) is not None:
        faults.append(f"the rows of {printable(broken.encode())} are not those of one sample, one after the other")
    return faults


def _first_broken_sample(ok: pa.Table, textures: int) -> str | None:
    """Key of the first sample whose rows are not adjacent, in the order of their index, and agreeing on the image."""
    per_sample = max(textures, 1)
    index = pc.fill_null(ok["index"], -1).to_numpy()
    wrong = index != (np.arange(len(index)) % per_sample if textures else -1)
    if per_sample > 1:
        same = ["key", "shard", "label", "image_ext", "image_offset", "image_size"]
        for column in (ok[name].combine_chunks() for name in same):
            if len(column) > 1:
                differs = ~pc.fill_null(pc.equal(column[1:], column[:-1]), False).to_numpy(zero_copy_only=False)
                wrong[1:] |= differs & (np.arange(1, len(index)) % per_sample != 0)
    if len(index) % per_sample:
        wrong[-1] = True
    return ok["key"][int(wrong.argmax())].as_py() or "" if wrong.any() else None


def _rows_by_shard(ok: pa.Table) -> dict[str, list[pa.Table]]:
    """Shard name -> slices of the rows. One pass: a shard's rows are adjacent in any manifest of ours."""
    names = pc.fill_null(ok["shard"], "").combine_chunks().dictionary_encode()
    codes, texts = names.indices.to_numpy(), names.dictionary.to_pylist()
    starts = np.flatnonzero(np.diff(codes, prepend=-1)).tolist()
    rows: dict[str, list[pa.Table]] = {}
    for start, end in zip(starts, [*starts[1:], len(codes)], strict=True):
        rows.setdefault(texts[codes[start]], []).append(ok.slice(start, end - start))
    return rows


def _members(slices: list[pa.Table]) -> pa.Table:
    """What the manifest has of one shard, a row per member in the tar's order: name, place, and what is in it."""
    rows = pa.concat_tables(slices).combine_chunks() if slices else MANIFEST_SCHEMA.empty_table().select(COLUMNS)
    first = rows.filter(pc.equal(pc.fill_null(rows["index"], 0), 0))
    textured = rows.filter(pc.is_valid(rows["index"]))
    members = rows["members"].combine_chunks()
    passed, parents = members.flatten(), rows.take(pc.list_parent_indices(members))
    texture_ext = _joined("texture", pc.cast(textured["index"], pa.string())), textured["texture_ext"]

    def table(names: Any, about: pa.Table, prefix: str) -> pa.Table:
        place = {column: about[f"{prefix}_{column}"] for column in PLACE}
        return pa.table({"name": names, **place, "width": about["width"], "height": about["height"]})

    tables = [
        table(_joined(first["key"], ".", first["image_ext"]), first, "image"),
        table(_joined(textured["key"], ".", texture_ext[0], ".", texture_ext[1]), textured, "texture"),
        pa.table(
            {
                "name": _joined(parents["key"], ".", passed.field("ext")),
                **{column: passed.field(column) for column in PLACE},
                "label": parents["label"],
            }
        ),
    ]
    return pa.concat_tables(tables, promote_options="default").combine_chunks().sort_by("offset")


def _joined(*parts: Any) -> Any:
    return pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="")


def _check_shard(path: Path, shard: dict[str, Any], members: pa.Table | None, deep: bool) -> tuple[bool, list[str]]:
    """(whether the bytes are other than those of the build, the faults)"""
    if not path.is_file():
        return True, ["missing"]
    try:
        with open(path, "rb", buffering=0) as f:
            return _check_open_shard(f, path.stat().st_size, shard, members, deep)
    except OSError as error:
        return True, [f"cannot be read ({error.strerror})"]


def _check_open_shard(
    f: IO[bytes], length: int, shard: dict[str, Any], members: pa.Table | None, deep: bool
) -> tuple[bool, list[str]]:
    known = members if members is not None else _members([])
    names = known["name"].cast(pa.binary()).to_pylist()
    offsets, sizes = (pc.fill_null(known[column], -1).to_numpy() for column in ("offset", "size"))
    sha256, as_expected = hash_and_compare(f, np.array(names or [b""], "S100")[: len(names)], offsets, sizes)
    damaged = sha256 != shard["sha256"]
    faults = [CHECKSUM_FAULT] if damaged else []
    if damaged and length != shard["bytes"]:
        faults[0] += f" ({length} bytes where {shard['bytes']} were written)"
    if members is None:
        return damaged, faults
    bad: dict[bytes, str] = {}  # a member is named once, by the first thing that is wrong with it
    outside = (offsets < 0) | (sizes < 0) | (offsets > length) | (sizes > length - offsets)
    for place in np.flatnonzero(outside).tolist():
        bad[names[place]] = "the manifest places it outside the file"
    inside = known.filter(pa.array(~outside)) if damaged or deep else known
    if damaged:
        bad |= _compare_contents(f, inside)
    of_tar: list[str] = []
    if not as_expected:
        expected = dict(zip(names, zip(offsets.tolist(), sizes.tolist(), strict=True), strict=True))
        if len(expected) < len(names):
            of_tar.append("the manifest has two members of one name")
        for member, fault in walk(f, length, expected):
            if member is None:
                of_tar.append(fault)
            elif member in expected:
                bad.setdefault(member, fault)
            else:
                of_tar.append(f"{printable(member)}: {fault}")
    if deep:
        for name, fault in _decode(f, inside):
            bad.setdefault(name, fault)
    if damaged and not bad and not of_tar:
        faults[0] += "; no member is, only what lies between them"
    in_order = [f"{printable(name)}: {bad[name]}" for name in dict.fromkeys(names) if name in bad]
    return damaged, faults + of_tar + in_order


def _compare_contents(f: IO[bytes], members: pa.Table) -> dict[bytes, str]:
    bad = {}
    for member in _each(members):
        digest = hashlib.sha256()
        f.seek(member["offset"])
        left = member["size"]
        while left > 0 and (data := f.read(min(left, CHUNK))):
            digest.update(data)
            left -= len(data)
        if digest.digest() != member["sha256"]:
            bad[member["name"]] = "its bytes are not those that were written"
    return bad


def _decode(f: IO[bytes], members: pa.Table) -> Iterator[tuple[bytes, str]]:
    for member in _each(members):
        name, label, size = member["name"], member["label"], member["size"]
        if member["width"] is None and not name.endswith(b".cls"):
            continue  # passed through: nobody here knows what it is
        if size > LARGEST_IMAGE:
            yield name, f"{size} bytes, too large for an image"
            continue
        f.seek(member["offset"])
        data = f.read(size)
        if member["width"] is None:
            if data != str(label).encode():
                yield name, f"it says {printable(data[:20])}, the manifest {label}"
            continue
        try:
            height, width = decode_image(data).shape[:2]
        except UserError as error:
            yield name, str(error)
            continue
        if (width, height) != (member["width"], member["height"]):
            yield name, f"{width}x{height} pixels, the manifest says {member['width']}x{member['height']}"


def _each(members: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows as dicts, with the name as bytes; a part at a time."""
    binary = members.set_column(0, "name", members["name"].cast(pa.binary()))
    for batch in binary.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()
