"""The manifest as the reader needs it: per sample the place of each member, everything checked once, for all rows.

After `check_rows` no offset leads out of its shard and no row names a file that `build.json` does not list, so reading
a sample needs no checks of its own. What indexing touches per sample is in memoryviews: they give Python numbers, four
times as fast as NumPy, in 8 bytes each.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from texturegen.errors import UserError
from texturegen.shards.layout import BUILD, IMAGE_EXTENSIONS, MANIFEST_SCHEMA, MEMBER

COLUMNS = ["key", "shard", "index", "label", "width", "height", "members", "status", "meta"]
COLUMNS += [f"{member}_{column}" for member in ("image", "texture") for column in ("ext", "offset", "size")]
# KEY of schema.py without its look-ahead, which Arrow's expressions do not have.
KEY_CHARACTERS = "^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$"
KEY_LENGTH = 80
# Between two members of a sample lie at most a header and the padding of the one before.
BETWEEN = 1024


class Rows:
    """What is known of each sample, in order, without its bytes.

    Attributes
    ----------
    keys : list of N texts.
    labels, widths, heights : int64 (N,).
    numbers : int32 (N,), of the shard in `files`.
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

    def one(self, row: int) -> "Rows":
        """The sample `row` alone."""
        part = slice(row, row + 1)
        # A slice would travel to another process with all that it is a slice of.
        labels, widths, heights, places, ranges = (
            array[part].copy() for array in (self.labels, self.widths, self.heights, self.places, self.ranges)
        )
        metas, members = (pa.array(array[part].to_pylist(), array.type) for array in (self.metas, self.members))
        file, number = self.files[self.number[row]], np.zeros(1, np.int32)
        return Rows(self.keys[part], labels, widths, heights, number, places, ranges, metas, members, [file])

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.keys, self.labels, self.widths, self.heights, self.numbers, self.places, self.ranges)
        return Rows, (*parts, self.metas, self.members, self.files)


def read_manifest(source: Any, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read the manifest from a path or an Arrow file; all columns or some. UserError with its `name` when damaged."""
    try:
        file = pq.ParquetFile(source)
        if not file.schema_arrow.equals(MANIFEST_SCHEMA):
            raise UserError(f"{name}: its columns are not those of a manifest; copy it again or build again")
        table = file.read(columns)
        table.validate(full=True)  # damage can leave texts that are none, and lists that end before they begin
        return table
    except FileNotFoundError:
        raise UserError(f"{name}: missing; build again into a new directory") from None
    except (pa.ArrowException, OSError) as error:
        reason = (str(error) or "?").splitlines()[0]
        raise UserError(f"{name}: damaged ({reason}); copy it again or build again into a new directory") from None


def check_rows(table: pa.Table, build: dict[str, Any], name: str, files: list[str]) -> Rows:
    """Check what the manifest says of the samples that are in shards, and return it by sample.

    Parameters
    ----------
    table : the COLUMNS of the manifest.
    build : the content of build.json.
    name : of the manifest, for messages.
    files : path or URL of each shard, in the order of build.json.

    Raises UserError with `name` and a key: null where a value must be; rows of a sample that are not adjacent or too
    few; a shard that build.json does not list; places outside the shard; image types that are none of ours.
    """
    check = _Checks(table, name)
    is_ok = pc.fill_null(pc.equal(table["status"], "ok"), False)
    if not pc.all(is_ok).as_py():
        check.table = table = table.filter(is_ok)
    textures: int = build["recipe"]["per_image"]
    per_sample = max(textures, 1)
    sides = ["image", "texture"] if textures else ["image"]
    for column in ["key", "shard", "label", "width", "height", "meta", *(["index"] if textures else [])]:
        check.no_nulls(column)
    for column in [f"{side}_{what}" for side in sides for what in ("ext", "offset", "size")]:
        check.no_nulls(column)
    samples, missing = divmod(len(table), per_sample)
    if missing or samples != build["counts"]["samples"]:
        raise UserError(
            f"{name}: {len(table)} rows where {BUILD} counts {build['counts']['samples']} samples of {per_sample}; "
            "copy both again, or build again into a new directory"
        )
    check.fine(pc.match_substring_regex(table["key"], KEY_CHARACTERS), "is no key that a shard may hold")
    check.fine(pc.less_equal(pc.binary_length(table["key"]), KEY_LENGTH), "is longer than a key may be")

    numbers = check.shards([shard["name"] for shard in build["shards"]])
    bounds = np.array([shard["bytes"] for shard in build["shards"]], np.int64)[numbers]
    for side in sides:
        known = pc.is_in(table[f"{side}_ext"], value_set=pa.array(IMAGE_EXTENSIONS))
        check.fine(known, f"{side}: of a type that shards do not hold; not opened")
        check.inside(_numbers(table, f"{side}_offset"), _numbers(table, f"{side}_size"), bounds, side)
    for side in ("width", "height"):
        check.fine(pc.greater(table[side], 0), f"{side} is not positive")
    check.adjacent(per_sample, textures, numbers)

    # The rows of a sample are adjacent: the image's columns stand in the first, a texture in each.
    first = table.take(np.arange(0, len(table), per_sample)) if per_sample > 1 else table
    places = np.empty((samples, 1 + textures, 2), np.int64)
    for at, what in enumerate(("offset", "size")):
        places[:, 0, at] = _numbers(first, f"image_{what}")
        if textures:
            places[:, 1:, at] = _numbers(table, f"texture_{what}").reshape(samples, textures)
    check.table, numbers, bounds = first, numbers[::per_sample].astype(np.int32), bounds[::per_sample]
    members, parents = _members(first, check)
    offsets, sizes = (members.values.field(what).to_numpy() for what in ("offset", "size"))
    check.inside(offsets, sizes, bounds[parents], "members", parents)
    ranges = np.stack([places[..., 0].min(1), places.sum(2).max(1)], 1)
    np.minimum.at(ranges[:, 0], parents, offsets)
    np.maximum.at(ranges[:, 1], parents, offsets + sizes)
    total, count = places[..., 1].sum(1), np.full(samples, 1 + textures)
    np.add.at(total, parents, sizes)
    np.add.at(count, parents, 1)
    check.fine(ranges[:, 1] - ranges[:, 0] <= total + BETWEEN * count, "its members lie far from each other")
    return Rows(
        first["key"].to_pylist(),
        _numbers(first, "label").copy(),  # Arrow's own memory is read-only
        _numbers(first, "width").astype(np.int64),
        _numbers(first, "height").astype(np.int64),
        numbers,
        places,
        ranges,
        _whole(first, "meta"),
        members,
        files,
    )


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


class _Checks:
    """Conditions on all rows of `table`; the first row that does not meet one is named."""

    def __init__(self, table: pa.Table, name: str) -> None:
        self.table, self.name = table, name

    def fine(self, condition: Any, fault: str) -> None:
        rows = condition if isinstance(condition, np.ndarray) else condition.to_numpy()
        if not rows.all():
            self.fail(int(np.argmin(rows)), fault)

    def fail(self, row: int, fault: str) -> None:
        key = self.table["key"][row].as_py()
        raise UserError(
            f"{self.name}: {key!r}: {fault}; the manifest is damaged: copy it again, or build into a new directory"
        )

    def no_nulls(self, column: str) -> None:
        if self.table[column].null_count:
            self.fine(pc.is_valid(self.table[column]), f"it has no {column}")

    def shards(self, names: list[str]) -> np.ndarray:
        """Number of each row's shard in `names`, int64."""
        found = pc.index_in(self.table["shard"], value_set=pa.array(names, pa.string()))
        if found.null_count:
            row = int(np.argmin(pc.is_valid(found).to_numpy()))
            self.fail(
                row, f"in the shard {self.table['shard'][row].as_py()!r}, which {BUILD} does not list; not opened"
            )
        return found.to_numpy().astype(np.int64)

    def adjacent(self, per_sample: int, textures: int, numbers: np.ndarray) -> None:
        rows = np.arange(len(self.table))
        if textures:
            self.fine(_numbers(self.table, "index") == rows % per_sample, "its rows are not in order")
        else:
            self.fine(pc.is_null(self.table["index"]), "it has a texture, and the others have none")
        if per_sample == 1 or not len(rows):
            return
        inner = rows[1:] % per_sample != 0
        keys = _whole(self.table, "key")
        same = pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
        for values in (numbers, *(_numbers(self.table, f"image_{what}") for what in ("offset", "size"))):
            same &= values[1:] == values[:-1]
        self.fine(np.append(True, same | ~inner), "its rows are not those of one sample, one after the other")

    def inside(
        self, offsets: np.ndarray, sizes: np.ndarray, bounds: np.ndarray, what: str, rows: np.ndarray | None = None
    ) -> None:
        wrong = np.flatnonzero((offsets < 0) | (sizes < 0) | (offsets > bounds) | (sizes > bounds - offsets))
        if len(wrong):
            row = int(wrong[0] if rows is None else rows[wrong[0]])
            self.fail(row, f"{what}: placed outside the shard {self.table['shard'][row].as_py()}; not read")


def _members(first: pa.Table, check: _Checks) -> tuple[pa.Array, np.ndarray]:
    """The column `members` without checksums and nulls, and the row of each member."""
    column = _whole(first, "members")
    values = column.flatten()  # those of the rows only, without the values of nulls
    parents = pc.list_parent_indices(column).to_numpy().astype(np.int64)
    for what in ("ext", "offset", "size"):
        part = pc.struct_field(values, [what])
        good = pc.is_valid(part)
        if what == "ext":
            good = pc.and_(good, pc.fill_null(pc.match_substring_regex(part, f"^({MEMBER.pattern})$"), False))
        wrong = np.flatnonzero(~good.to_numpy(zero_copy_only=False))
        if len(wrong):
            check.fail(int(parents[wrong[0]]), f"one of its members has no {what} that could be")
    lengths = np.bincount(parents, minlength=len(column))
    names = pc.struct_field(values, ["ext"]).dictionary_encode()
    parts = [names, *(pc.struct_field(values, [what]) for what in ("offset", "size"))]
    struct = pa.StructArray.from_arrays(parts, ["ext", "offset", "size"])
    ends = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
    return pa.ListArray.from_arrays(ends, struct), parents


def _whole(table: pa.Table, column: str) -> pa.Array:
    whole = table[column].combine_chunks()
    # Of no chunk at all some versions of pyarrow make a chunked array again.
    return whole if isinstance(whole, pa.Array) else pa.array([], table.schema.field(column).type)


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return table[column].to_numpy()
