"""Decide whether the rows of a manifest are valid: the reader, verify and merge share the rules that are defined here.

`check_rows` checks all rows at once, vectorised, and returns the offset and size of every member. The members' sizes
determine the layout of a tar (headers of one block, data padded to whole blocks, no gaps), so offsets are checked
without opening the tar: every member is inside its shard, and no two overlap. Reading a sample needs no further checks.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from texturegen.shards.build_json import COUNTS
from texturegen.shards.layout import BUILD, IMAGE_EXTENSIONS, MAX_KEY, MAX_NAME, MEMBER, RESERVED
from texturegen.shards.manifest import is_ok, list_lengths, select_ok
from texturegen.shards.sample_index import Keys, SampleIndex
from texturegen.storage.image import MAX_PIXELS
from texturegen.storage.names import KEY_SEGMENTS, printable
from texturegen.storage.tar import BLOCK, end_of_tar

MAX_IMAGE_BYTES = 6 * MAX_PIXELS  # uncompressed, 16 bits per channel
MAX_NAMED = 20  # rows named per kind of fault
# These columns describe the image, so they are equal in all rows of a sample.
_IMAGE_COLUMNS = ["key", "shard", "label", "width", "height", "meta", "texture_ext"]
_IMAGE_COLUMNS += ["image_ext", "image_offset", "image_size", "image_sha256"]


def check_rows(table: pa.Table, build: dict[str, Any], files: list[str]) -> tuple[SampleIndex | None, list[str]]:
    """Check the manifest's rows against each other and against build.json.

    `meta` is only checked for nulls, because parsing it would take longer than all other checks.

    Parameters
    ----------
    table : COLUMNS of the manifest.
    build : the content of build.json, as `read_build` returns it.
    files : path or URL of each shard, in the order of build.json.

    Returns
    -------
    index : the samples; None if any row is invalid.
    faults : one sentence per fault. The fault of a row starts with the sample's key; a total that contradicts
        build.json is a fault too.
    """
    checks = _Checks(table)
    textures: int = build["recipe"]["per_image"]
    is_ok_row = is_ok(table)
    checks.check_status(is_ok_row)
    ok = select_ok(table)
    checks.check_counts(ok, build, len(table) - len(ok))
    checks.table = ok
    shard_ids = checks.check_values(textures, [shard["name"] for shard in build["shards"]])
    if checks.faults:
        return None, checks.faults + checks.totals
    per_sample = max(textures, 1)
    checks.check_grouping(textures, np.flatnonzero(is_ok_row))
    if checks.faults:
        return None, checks.faults + checks.totals
    first = ok.take(np.arange(0, len(ok), per_sample)) if per_sample > 1 else ok
    checks.table, shard_ids = first, shard_ids[::per_sample]
    checks.check_order(shard_ids, build)
    members = checks.check_members()
    if checks.faults or members is None:
        return None, checks.faults + checks.totals
    extents = np.empty((len(first), 1 + textures, 2), np.int64)
    for axis, field in enumerate(("offset", "size")):
        extents[:, 0, axis] = _to_numpy(first, f"image_{field}")
        if textures:
            extents[:, 1:, axis] = _to_numpy(ok, f"texture_{field}").reshape(len(first), textures)
    digests = np.empty((len(first), 1 + textures), np.uint64)
    digests[:, 0] = _digests(_combine_chunks(first, "image_sha256"))
    if textures:
        digests[:, 1:] = _digests(_combine_chunks(ok, "texture_sha256")).reshape(len(first), textures)
    ranges = checks.check_layout(shard_ids, extents, members, build)
    if checks.faults:
        return None, checks.faults + checks.totals
    index = SampleIndex(
        Keys(_combine_chunks(first, "key")),
        _to_numpy(first, "label").copy(),  # Arrow's own memory is read-only
        _to_numpy(first, "width").astype(np.int64),
        _to_numpy(first, "height").astype(np.int64),
        shard_ids.astype(np.int32),
        extents,
        digests,
        ranges,
        _combine_chunks(first, "meta"),
        members,
        files,
    )
    return index, checks.totals


class _Checks:
    """Checks of the rows of `table`, which collect a fault for each invalid row."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.faults: list[str] = []  # about single rows
        self.totals: list[str] = []  # contradictions between the totals of all rows and build.json

    def require(self, condition: Any, fault: str | Callable[[int], str], rows: np.ndarray | None = None) -> None:
        """Add a fault for each False entry of `condition`; null counts as True. `rows` maps entries to rows."""
        if isinstance(condition, np.ndarray):
            bad = np.flatnonzero(~condition)
        else:
            bad = np.flatnonzero(~pc.fill_null(condition, True).to_numpy(zero_copy_only=False).astype(bool))
        if not len(bad):
            return
        bad_rows = np.unique(bad if rows is None else rows[bad])
        named = [
            f"{self._name(row)}: {fault if isinstance(fault, str) else fault(row)}" for row in bad_rows[:MAX_NAMED]
        ]
        self.faults += dict.fromkeys(named)  # without duplicates: the rows of a sample repeat the faults of its image
        if len(bad_rows) > MAX_NAMED:
            more = len(bad_rows) - MAX_NAMED
            self.faults.append(f"{more} more rows have the same fault as {self._name(bad_rows[0])}")

    def _name(self, row: int) -> str:
        key = self.table["key"][int(row)].as_py()
        return f"row {row}" if key is None else printable(key)

    def check_status(self, is_ok_row: np.ndarray) -> None:
        status = self.table["status"]
        is_known = pc.is_in(status, value_set=pa.array(["ok", "failed"]))
        self.require(is_known, "its status is neither ok nor failed")
        if not is_ok_row.all():
            failed = ~is_ok_row
            self.require(~failed | pc.is_valid(self.table["key"]).to_numpy(), "it has no key")
            for column in ("shard", "index"):
                is_absent = pc.is_null(self.table[column]).to_numpy()
                self.require(~failed | is_absent, f"its status is failed, but {column} is not null")

    def check_counts(self, ok: pa.Table, build: dict[str, Any], failed: int) -> None:
        textures: int = build["recipe"]["per_image"]
        samples, rest = divmod(len(ok), max(textures, 1))
        if rest:
            self.faults.append(
                f"{len(ok)} rows with status ok, which is not a multiple of {textures} textures per image"
            )
        found = {"samples": samples, "textures": len(ok) - ok["index"].null_count, "failed": failed}
        for name in COUNTS:
            if not rest and found[name] != build["counts"][name]:
                self.totals.append(f"{found[name]} {name}, but {BUILD} counts {build['counts'][name]}")

    def check_values(self, textures: int, shards: list[str]) -> np.ndarray:
        """Check each value by itself; return the index of each row's shard, int64 (rows,)."""
        table = self.table
        kinds = ["image", "texture"] if textures else ["image"]
        required = ["key", "shard", "label", "width", "height", "meta", *(["index"] if textures else [])]
        required += [f"{kind}_{field}" for kind in kinds for field in ("ext", "offset", "size", "sha256")]
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
        for kind in kinds:
            is_known = pc.is_in(table[f"{kind}_ext"], value_set=pa.array(IMAGE_EXTENSIONS), skip_nulls=True)
            is_known = pc.or_(is_known, pc.is_null(table[f"{kind}_ext"]))
            self.require(is_known, f"the {kind}'s extension is not one of {', '.join(IMAGE_EXTENSIONS)}")
            is_small = pc.less_equal(table[f"{kind}_size"], MAX_IMAGE_BYTES)
            self.require(is_small, f"the {kind} has more than {MAX_IMAGE_BYTES} bytes")
        found = pc.index_in(table["shard"], value_set=pa.array(shards, pa.string()))
        if found.null_count > table["shard"].null_count:
            self.require(
                pc.or_(pc.is_valid(found), pc.is_null(table["shard"])),
                lambda row: f"in the shard {printable(table['shard'][int(row)].as_py())}, which {BUILD} does not list",
            )
        return pc.fill_null(found, -1).to_numpy().astype(np.int64)

    def check_grouping(self, textures: int, positions: np.ndarray) -> None:
        """Check that the rows of each sample are adjacent. `positions` : int64, index of each row in the manifest."""
        table, per_sample = self.table, max(textures, 1)
        rows = np.arange(len(table))
        if not textures:
            self.require(pc.is_null(table["index"]), "it has a texture, but recipe.per_image is 0")
            return
        first = rows - rows % per_sample
        broken = (_to_numpy(table, "index") != rows % per_sample) | (positions - positions[first] != rows % per_sample)
        if broken.any():  # only the first is named, because it shifts all that follow
            self.require(rows != np.argmax(broken), "its rows are not adjacent in the order of index")
            return
        if per_sample == 1 or not len(rows):
            return
        is_same = np.ones(len(rows) - 1, bool)
        for column in (_combine_chunks(table, name) for name in _IMAGE_COLUMNS):
            is_same &= pc.equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
        is_same |= rows[1:] % per_sample == 0
        self.require(is_same, "its rows describe different images", first[1:])
        has_members = list_lengths(_combine_chunks(table, "members")) > 0
        self.require(~has_members | (rows == first), "a row other than its first lists members")

    def check_order(self, shard_ids: np.ndarray, build: dict[str, Any]) -> None:
        """Check that keys are unique, that shards are in order, and how many samples each shard has."""
        keys = _combine_chunks(self.table, "key")
        if pc.count_distinct(keys).as_py() != len(keys):
            counts = keys.value_counts()
            repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
            is_first = np.zeros(len(keys), bool)
            is_first[pc.index_in(repeated, value_set=keys).to_numpy()] = True
            self.require(~is_first, "appears more than once")
        self.require(
            np.append(True, np.diff(shard_ids) >= 0)[: len(shard_ids)], "is listed after samples of a later shard"
        )
        for shard, found in zip(build["shards"], np.bincount(shard_ids, minlength=len(build["shards"])), strict=True):
            if found != shard["samples"] or found * build["recipe"]["per_image"] != shard["textures"]:
                self.totals.append(
                    f"{found} samples of {shard['name']}, but {BUILD} counts {shard['samples']} and "
                    f"{shard['textures']} textures"
                )

    def check_members(self) -> pa.Array | None:
        """Check the column `members`; return it as lists of {ext, offset, size, digest}, or None if it has faults."""
        column = _combine_chunks(self.table, "members")
        values = column.flatten()  # unlike `.values`, leaves out values under nulls
        parents = pc.list_parent_indices(column).to_numpy().astype(np.int64)
        fields = {name: pc.struct_field(values, [name]) for name in ("ext", "offset", "size", "sha256")}
        for name, field in fields.items():
            if field.null_count:
                self.require(pc.is_valid(field), f"one of its members has no {name}", parents)
        if self.faults:
            return None
        ext = fields["ext"]
        is_label = pc.equal(ext, "cls").to_numpy(zero_copy_only=False)
        is_plain = pc.match_substring_regex(ext, f"^({MEMBER.pattern})$").to_numpy(zero_copy_only=False)
        is_reserved = pc.match_substring_regex(ext, f"^({RESERVED.pattern})$").to_numpy(zero_copy_only=False)
        self.require(
            is_plain & (~is_reserved | is_label), "one of its members has a reserved or invalid extension", parents
        )
        lengths = np.bincount(parents, minlength=len(column))
        labels = np.bincount(parents[is_label], minlength=len(column))
        self.require(labels == 1, "it must have exactly one cls member")
        key_lengths = pc.binary_length(_combine_chunks(self.table, "key")).to_numpy()
        is_short = key_lengths[parents] + 1 + pc.binary_length(ext).to_numpy() <= MAX_NAME
        self.require(is_short, f"one of its members has a name of more than {MAX_NAME} characters", parents)
        if len(ext) > 1:
            is_after = pc.greater(ext[1:], ext[:-1]).to_numpy(zero_copy_only=False)
            self.require(
                is_after | (parents[1:] != parents[:-1]), "its members are not sorted by extension", parents[1:]
            )
        kept = [ext.dictionary_encode(), fields["offset"], fields["size"], pa.array(_digests(fields["sha256"]))]
        ends = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
        return pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(kept, ["ext", "offset", "size", "digest"]))

    def check_layout(
        self, shard_ids: np.ndarray, extents: np.ndarray, members: pa.Array, build: dict[str, Any]
    ) -> np.ndarray:
        """Check that each member starts where the previous one ends; return `SampleIndex.ranges`."""
        samples, fixed = len(extents), extents.shape[1]
        lengths = list_lengths(members)
        counts = fixed + lengths
        starts = np.cumsum(counts) - counts
        sample_of = np.repeat(np.arange(samples), counts)
        offsets, sizes = (np.empty(len(sample_of), np.int64) for _ in range(2))
        images = starts[:, None] + np.arange(fixed)  # positions of images and textures among all members
        is_listed = np.ones(len(sample_of), bool)  # the others come from the column `members`
        is_listed[images.reshape(-1)] = False
        for values, field, axis in ((offsets, "offset", 0), (sizes, "size", 1)):
            values[images] = extents[..., axis]
            values[is_listed] = members.values.field(field).to_numpy()
        shard_of = shard_ids[sample_of]
        bounds = np.array([shard["bytes"] for shard in build["shards"]], np.int64)
        bound = bounds[shard_of]
        is_inside = (offsets >= BLOCK) & (sizes >= 0) & (offsets <= bound) & (sizes <= bound - offsets)
        self.require(
            is_inside,
            lambda row: f"a member is outside the shard {build['shards'][shard_ids[row]]['name']}",
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
            if shard["bytes"] not in ((0, end_of_tar(0)) if end == 0 else (end_of_tar(end),)):
                self.totals.append(
                    f"the members of {shard['name']} make a tar of {end_of_tar(end)} bytes, "
                    f"but {BUILD} has {shard['bytes']}"
                )
        last = starts + counts - 1
        return np.stack([offsets[starts], offsets[last] + sizes[last]], 1)


def _digests(sha256: pa.FixedSizeBinaryArray) -> np.ndarray:
    """Return the first 8 bytes of each SHA-256 of an array without nulls, uint64 (N,)."""
    if not len(sha256):
        return np.empty(0, np.uint64)
    words = np.frombuffer(sha256.buffers()[1], "<u8").reshape(-1, 4)[sha256.offset : sha256.offset + len(sha256), 0]
    return words.astype(np.uint64)  # a copy


def _combine_chunks(table: pa.Table, column: str) -> pa.Array:
    whole = table[column].combine_chunks()
    # Without any chunk some versions of pyarrow return a chunked array again.
    return whole if isinstance(whole, pa.Array) else pa.array([], table.schema.field(column).type)


def _to_numpy(table: pa.Table, column: str) -> np.ndarray:
    return table[column].to_numpy()
