"""Read and validate the manifest: the rules for a valid row live here, for reader, verify and merge alike.

`check_rows` checks every row once, vectorised, and says where each member lies. A tar of ours is determined by the
sizes of its members (headers of one block, data padded to blocks, no gaps), so the manifest's offsets can be checked
without the tar: no offset leads out of its shard, and no two members overlap. Reading a sample needs no further checks.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from texturegen.errors import DamagedError
from texturegen.shards.build_json import COUNTS
from texturegen.shards.layout import (
    BUILD,
    IMAGE_EXTENSIONS,
    MANIFEST_SCHEMA,
    MAX_KEY,
    MAX_NAME,
    MEMBER,
    RESERVED,
)
from texturegen.storage.arrow import open_for_arrow
from texturegen.storage.image import MAX_PIXELS
from texturegen.storage.names import KEY_SEGMENTS, printable
from texturegen.storage.tar import BLOCK, end_of_tar

# What `check_rows` needs; the other columns record how each texture was made.
COLUMNS = ["key", "shard", "index", "label", "width", "height", "status", "meta", "members"]
COLUMNS += [f"{member}_{what}" for member in ("image", "texture") for what in ("ext", "offset", "size", "sha256")]
MAX_IMAGE_BYTES = 6 * MAX_PIXELS  # of an image without compression, with 16 bits per channel
MAX_NAMED = 20  # rows named for each kind of fault
# A row repeats the columns of its image.
_IMAGE_COLUMNS = ["key", "shard", "label", "width", "height", "meta", "texture_ext"]
_IMAGE_COLUMNS += ["image_ext", "image_offset", "image_size", "image_sha256"]


class Rows:
    """Where the members of each sample lie, in order.

    What indexing touches per sample is in memoryviews, which give Python numbers four times as fast as NumPy arrays.

    Attributes
    ----------
    keys : list of N texts.
    labels, widths, heights : int64 (N,).
    numbers : int32 (N,), the shard's number in `files`.
    places : int64 (N, 1 + K, 2), offset and size of the image and of each texture.
    ranges : int64 (N, 2), first byte and end of all members of the sample.
    metas : pyarrow text (N,), JSON.
    members : pyarrow list (N,) of {ext, offset, size}: "cls" and what was passed through.
    files : path or URL of each shard.
    """

    def __init__(
        self,
        keys: list[str],
        labels: np.ndarray,
        widths: np.ndarray,
        heights: np.ndarray,
        numbers: np.ndarray,
        places: np.ndarray,
        ranges: np.ndarray,
        metas: pa.Array,
        members: pa.Array,
        files: list[str],
    ) -> None:
        self.keys, self.labels, self.widths, self.heights, self.numbers = keys, labels, widths, heights, numbers
        self.places, self.ranges, self.metas, self.members, self.files = places, ranges, metas, members, files
        self.stride = 2 * places.shape[1]
        self.label, self.number, self.width, self.height, self.place = (
            memoryview(cast(Any, array.reshape(-1))) for array in (labels, numbers, widths, heights, places)
        )

    def select(self, row: int) -> "Rows":
        """Return the sample `row` by itself, in copies: a pickled slice would carry the whole array."""
        part = slice(row, row + 1)
        labels, widths, heights, places, ranges = (
            array[part].copy() for array in (self.labels, self.widths, self.heights, self.places, self.ranges)
        )
        metas, members = (pa.array(array[part].to_pylist(), array.type) for array in (self.metas, self.members))
        file, number = self.files[self.number[row]], np.zeros(1, np.int32)
        return Rows(self.keys[part], labels, widths, heights, number, places, ranges, metas, members, [file])

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.keys, self.labels, self.widths, self.heights, self.numbers, self.places, self.ranges)
        return Rows, (*parts, self.metas, self.members, self.files)


def read_manifest(source: Any, columns: list[str] | None = None, group: int | None = None) -> pa.Table:
    """Read the manifest and check that the file is sound.

    Parameters
    ----------
    source : a path or an Arrow file.
    columns : None is all.
    group : a row group to read by itself; None is all.

    Raises
    ------
    DamagedError : it cannot be read, or has other columns; the message does not name the file.
    """
    try:
        file = pq.ParquetFile(open_for_arrow(source) if isinstance(source, Path) else source)
        if not file.schema_arrow.equals(MANIFEST_SCHEMA):
            raise DamagedError("its columns are not those of a manifest")
        table = file.read(columns) if group is None else file.read_row_group(group, columns)
        table.validate(full=True)  # damage can leave invalid UTF-8 and decreasing list offsets
        return table
    # Besides ArrowException, Arrow raises UnicodeDecodeError for column names, and the errors of codecs.
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DamagedError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedError(f"damaged ({printable(reason)})") from None


def parse_meta(text: str) -> dict[str, Any] | None:
    """Return the object that a row's `meta` holds; None if it is not a JSON object."""
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return meta if isinstance(meta, dict) else None


def group_samples(table: pa.Table, textures: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each sample together, in order; a failed image is one row by itself.

    Parameters
    ----------
    table : rows of `Shards.manifest`, whole samples of them: `check_rows` has found that a sample's rows are adjacent
        and in the order of `index`, so nothing is checked again here.
    textures : K, textures per image.
    """
    sample: list[dict[str, Any]] = []
    for batch in table.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            if row["status"] != "ok":
                yield [row]
                continue
            sample.append(row)
            if len(sample) == max(textures, 1):
                yield sample
                sample = []


def select_ok(table: pa.Table) -> pa.Table:
    """Return the rows of samples that are in shards; the table itself if no image failed, because a filter copies."""
    is_ok = _is_ok(table)
    return table if is_ok.all() else table.filter(pa.array(is_ok))


def check_rows(table: pa.Table, build: dict[str, Any], files: list[str]) -> tuple[Rows | None, list[str]]:
    """Check the manifest's rows against each other and against build.json.

    Parameters
    ----------
    table : COLUMNS of the manifest.
    build : the content of build.json, as `read_build` returns it.
    files : path or URL of each shard, in the order of build.json.

    Returns
    -------
    The samples, or None if any row is invalid; and the faults, one sentence each, starting with the key of the sample
    concerned. A total that contradicts build.json is a fault too. `meta` is only checked for nulls: parsing it would
    take longer than all other checks.
    """
    check = _Checks(table)
    textures: int = build["recipe"]["per_image"]
    is_ok = _is_ok(table)
    check.status(is_ok)
    ok = table if is_ok.all() else table.filter(pa.array(is_ok))
    check.counts(ok, build, len(table) - len(ok))
    check.table = ok
    numbers = check.values(textures, [shard["name"] for shard in build["shards"]])
    if check.faults:
        return None, check.faults + check.totals
    per_sample = max(textures, 1)
    check.adjacent(textures, np.flatnonzero(is_ok))
    if check.faults:
        return None, check.faults + check.totals
    first = ok.take(np.arange(0, len(ok), per_sample)) if per_sample > 1 else ok
    check.table, numbers = first, numbers[::per_sample]
    check.order(numbers, build)
    members = check.members()
    if check.faults or members is None:
        return None, check.faults + check.totals
    places = np.empty((len(first), 1 + textures, 2), np.int64)
    for at, what in enumerate(("offset", "size")):
        places[:, 0, at] = _numbers(first, f"image_{what}")
        if textures:
            places[:, 1:, at] = _numbers(ok, f"texture_{what}").reshape(len(first), textures)
    ranges = check.layout(numbers, places, members, build)
    if check.faults:
        return None, check.faults + check.totals
    rows = Rows(
        first["key"].to_pylist(),
        _numbers(first, "label").copy(),  # Arrow's own memory is read-only
        _numbers(first, "width").astype(np.int64),
        _numbers(first, "height").astype(np.int64),
        numbers.astype(np.int32),
        places,
        ranges,
        _combine_chunks(first, "meta"),
        members,
        files,
    )
    return rows, check.totals


class _Checks:
    """Conditions on the rows of `table`; a row that does not meet one becomes a fault."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.faults: list[str] = []  # of rows
        self.totals: list[str] = []  # contradictions between all rows and build.json

    def require(self, condition: Any, fault: str | Callable[[int], str], rows: np.ndarray | None = None) -> None:
        """Add a fault for each false entry of `condition` (null counts as true); `rows` maps entries to rows."""
        if isinstance(condition, np.ndarray):
            bad = np.flatnonzero(~condition)
        else:
            bad = np.flatnonzero(~pc.fill_null(condition, True).to_numpy(zero_copy_only=False).astype(bool))
        if not len(bad):
            return
        places = np.unique(bad if rows is None else rows[bad])
        named = [f"{self._name(row)}: {fault if isinstance(fault, str) else fault(row)}" for row in places[:MAX_NAMED]]
        self.faults += dict.fromkeys(named)  # all rows of a sample share its image's faults
        if len(places) > MAX_NAMED:
            self.faults.append(f"{len(places) - MAX_NAMED} more rows have the same fault as {self._name(places[0])}")

    def _name(self, row: int) -> str:
        key = self.table["key"][int(row)].as_py()
        return f"row {row}" if key is None else printable(key)

    def status(self, is_ok: np.ndarray) -> None:
        status = self.table["status"]
        known = pc.is_in(status, value_set=pa.array(["ok", "failed"]))
        self.require(known, "its status is neither ok nor failed")
        if not is_ok.all():
            failed = ~is_ok
            self.require(~failed | pc.is_valid(self.table["key"]).to_numpy(), "it has no key")
            for column in ("shard", "index"):
                absent = pc.is_null(self.table[column]).to_numpy()
                self.require(~failed | absent, f"its status is failed, but {column} is not null")

    def counts(self, ok: pa.Table, build: dict[str, Any], failed: int) -> None:
        textures: int = build["recipe"]["per_image"]
        samples, rest = divmod(len(ok), max(textures, 1))
        if rest:
            self.faults.append(f"{len(ok)} rows of samples, which is not a multiple of {textures} textures per image")
        found = {"samples": samples, "textures": len(ok) - ok["index"].null_count, "failed": failed}
        for name in COUNTS:
            if not rest and found[name] != build["counts"][name]:
                self.totals.append(f"{found[name]} {name}, but {BUILD} counts {build['counts'][name]}")

    def values(self, textures: int, shards: list[str]) -> np.ndarray:
        """Check each value by itself; return the number of each row's shard, int64."""
        table = self.table
        sides = ["image", "texture"] if textures else ["image"]
        required = ["key", "shard", "label", "width", "height", "meta", *(["index"] if textures else [])]
        required += [f"{side}_{what}" for side in sides for what in ("ext", "offset", "size", "sha256")]
        for column in required:
            if table[column].null_count:
                self.require(pc.is_valid(table[column]), f"it has no {column}")
        keys = table["key"]
        is_key = pc.match_substring_regex(keys, f"^{KEY_SEGMENTS}$")
        self.require(is_key, "is not a valid key; keys are segments of letters, digits, _ and - with / between them")
        self.require(pc.less_equal(pc.binary_length(keys), MAX_KEY), f"is longer than {MAX_KEY} characters")
        self.require(pc.greater_equal(table["label"], -1), "its label is less than -1")
        for side in ("width", "height"):
            self.require(pc.greater(table[side], 0), f"its {side} is not positive")
        for side in sides:
            known = pc.is_in(table[f"{side}_ext"], value_set=pa.array(IMAGE_EXTENSIONS), skip_nulls=True)
            known = pc.or_(known, pc.is_null(table[f"{side}_ext"]))
            self.require(known, f"the {side}'s extension is none of {', '.join(IMAGE_EXTENSIONS)}")
            is_small = pc.less_equal(table[f"{side}_size"], MAX_IMAGE_BYTES)
            self.require(is_small, f"the {side} has more than {MAX_IMAGE_BYTES} bytes")
        found = pc.index_in(table["shard"], value_set=pa.array(shards, pa.string()))
        if found.null_count > table["shard"].null_count:
            self.require(
                pc.or_(pc.is_valid(found), pc.is_null(table["shard"])),
                lambda row: f"in the shard {printable(table['shard'][int(row)].as_py())}, which {BUILD} does not list",
            )
        return pc.fill_null(found, -1).to_numpy().astype(np.int64)

    def adjacent(self, textures: int, places: np.ndarray) -> None:
        """Check that the rows of each sample are adjacent. `places`: row numbers in the full manifest."""
        table, per_sample = self.table, max(textures, 1)
        rows = np.arange(len(table))
        if not textures:
            self.require(pc.is_null(table["index"]), "it has a texture, and recipe.per_image is 0")
            return
        first = rows - rows % per_sample
        broken = (_numbers(table, "index") != rows % per_sample) | (places - places[first] != rows % per_sample)
        if broken.any():  # all that follow are broken too
            self.require(rows != np.argmax(broken), "its rows are not those of one sample, in the order of index")
            return
        if per_sample == 1 or not len(rows):
            return
        is_same = np.ones(len(rows) - 1, bool)
        for column in (_combine_chunks(table, name) for name in _IMAGE_COLUMNS):
            is_same &= pc.equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
        is_same |= rows[1:] % per_sample == 0
        self.require(is_same, "its rows disagree on the image", first[1:])
        has_members = _list_lengths(_combine_chunks(table, "members")) > 0
        self.require(~has_members | (rows == first), "it has members in another row than the first")

    def order(self, numbers: np.ndarray, build: dict[str, Any]) -> None:
        """Check keys and shards of the samples."""
        keys = _combine_chunks(self.table, "key")
        if pc.count_distinct(keys).as_py() != len(keys):
            counts = keys.value_counts()
            repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
            is_first = np.zeros(len(keys), bool)
            is_first[pc.index_in(repeated, value_set=keys).to_numpy()] = True
            self.require(~is_first, "appears more than once")
        self.require(np.append(True, np.diff(numbers) >= 0)[: len(numbers)], "is listed after samples of a later shard")
        for shard, found in zip(build["shards"], np.bincount(numbers, minlength=len(build["shards"])), strict=True):
            if found != shard["samples"] or found * build["recipe"]["per_image"] != shard["textures"]:
                self.totals.append(
                    f"{found} samples of {shard['name']}, but {BUILD} counts {shard['samples']} and "
                    f"{shard['textures']} textures"
                )

    def members(self) -> pa.Array | None:
        """Check the column `members`; return it as {ext, offset, size}, or None."""
        column = _combine_chunks(self.table, "members")
        values = column.flatten()  # those of the rows alone, without the values of nulls
        parents = pc.list_parent_indices(column).to_numpy().astype(np.int64)
        parts = {what: pc.struct_field(values, [what]) for what in ("ext", "offset", "size", "sha256")}
        for what, part in parts.items():
            if part.null_count:
                self.require(pc.is_valid(part), f"one of its members has no {what}", parents)
        if self.faults:
            return None
        ext = parts["ext"]
        is_label = pc.equal(ext, "cls").to_numpy(zero_copy_only=False)
        is_plain = pc.match_substring_regex(ext, f"^({MEMBER.pattern})$").to_numpy(zero_copy_only=False)
        is_reserved = pc.match_substring_regex(ext, f"^({RESERVED.pattern})$").to_numpy(zero_copy_only=False)
        self.require(
            is_plain & (~is_reserved | is_label), "one of its members has a reserved or invalid extension", parents
        )
        lengths = np.bincount(parents, minlength=len(column))
        labels = np.bincount(parents[is_label], minlength=len(column))
        self.require(labels == 1, "it must have exactly one member cls")
        key_lengths = pc.binary_length(_combine_chunks(self.table, "key")).to_numpy()
        is_short = key_lengths[parents] + 1 + pc.binary_length(ext).to_numpy() <= MAX_NAME
        self.require(is_short, f"one of its members has a name of more than {MAX_NAME} characters", parents)
        if len(ext) > 1:
            is_after = pc.greater(ext[1:], ext[:-1]).to_numpy(zero_copy_only=False)
            self.require(
                is_after | (parents[1:] != parents[:-1]), "its members are not sorted by extension", parents[1:]
            )
        fields = [ext.dictionary_encode(), parts["offset"], parts["size"]]
        ends = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
        return pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(fields, ["ext", "offset", "size"]))

    def layout(self, numbers: np.ndarray, places: np.ndarray, members: pa.Array, build: dict[str, Any]) -> np.ndarray:
        """Check that each member lies where those before it end; return the first byte and end of each sample."""
        samples, fixed = len(places), places.shape[1]
        lengths = _list_lengths(members)
        counts = fixed + lengths
        starts = np.cumsum(counts) - counts
        sample_of = np.repeat(np.arange(samples), counts)
        offsets, sizes = (np.empty(len(sample_of), np.int64) for _ in range(2))
        at = starts[:, None] + np.arange(fixed)
        within = np.ones(len(sample_of), bool)
        within[at.reshape(-1)] = False
        for values, what, column in ((offsets, "offset", 0), (sizes, "size", 1)):
            values[at] = places[..., column]
            values[within] = members.values.field(what).to_numpy()
        shard_of = numbers[sample_of]
        bounds = np.array([shard["bytes"] for shard in build["shards"]], np.int64)
        bound = bounds[shard_of]
        is_inside = (offsets >= BLOCK) & (sizes >= 0) & (offsets <= bound) & (sizes <= bound - offsets)
        self.require(
            is_inside,
            lambda row: f"a member is placed outside the shard {build['shards'][numbers[row]]['name']}",
            sample_of,
        )
        if self.faults:
            return np.empty((0, 2), np.int64)
        ends = offsets - (-sizes // BLOCK) * BLOCK  # with padding
        is_first = np.append(True, shard_of[1:] != shard_of[:-1])[: len(shard_of)]
        expected = np.where(is_first, 0, np.append(0, ends[:-1])[: len(ends)]) + BLOCK
        self.require(offsets == expected, "its members are not contiguous", sample_of)
        used = np.zeros(len(bounds), np.int64)
        np.maximum.at(used, shard_of, ends)
        for shard, end in zip(build["shards"], used.tolist(), strict=True):
            if end_of_tar(end) != shard["bytes"]:
                self.totals.append(
                    f"the members of {shard['name']} make a tar of {end_of_tar(end)} bytes, "
                    f"but {BUILD} has {shard['bytes']}"
                )
        last = starts + counts - 1
        return np.stack([offsets[starts], offsets[last] + sizes[last]], 1)


def _is_ok(table: pa.Table) -> np.ndarray:
    return pc.fill_null(pc.equal(table["status"], "ok"), False).to_numpy().astype(bool)


def _list_lengths(column: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)


def _combine_chunks(table: pa.Table, column: str) -> pa.Array:
    whole = table[column].combine_chunks()
    # Without any chunk some versions of pyarrow return a chunked array again.
    return whole if isinstance(whole, pa.Array) else pa.array([], table.schema.field(column).type)


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return table[column].to_numpy()
