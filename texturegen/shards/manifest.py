"""Read the manifest: its rows, those of earlier formats included, by sample. `checks` decides which rows are valid."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from texturegen.errors import DamagedError
from texturegen.shards.layout import BOX, MANIFEST_SCHEMA, SCHEMA_OF_FORMAT_2
from texturegen.storage.arrow import open_for_arrow
from texturegen.storage.names import printable

# The columns that `checks.check_rows` needs; the others record how each texture was made.
COLUMNS = ["key", "shard", "index", "label", "width", "height", "status", "meta", "members"]
COLUMNS += [f"{member}_{field}" for member in ("image", "texture") for field in ("ext", "offset", "size", "sha256")]


def read_manifest(source: Any, columns: list[str] | None = None, group: int | None = None) -> pa.Table:
    """Read the manifest and check that the file is valid Parquet with the manifest's schema, of any format we read.

    Parameters
    ----------
    source : a path or an Arrow file.
    columns : names of the columns to read; None reads all.
    group : index of the only row group to read; None reads all.

    Returns
    -------
    table : its columns have the types of MANIFEST_SCHEMA.

    Raises
    ------
    DamagedError : the file cannot be read, or has another schema; the message does not name the file.
    """
    try:
        file = pq.ParquetFile(open_for_arrow(source) if isinstance(source, Path) else source)
        if not any(file.schema_arrow.equals(schema) for schema in (MANIFEST_SCHEMA, SCHEMA_OF_FORMAT_2)):
            raise DamagedError("its schema is not that of a manifest")
        table = file.read(columns) if group is None else file.read_row_group(group, columns)
        table.validate(full=True)  # damage can leave invalid UTF-8 and decreasing list offsets
        return convert_rows(table)
    # Arrow raises UnicodeDecodeError for invalid column names, and OSError or ValueError for damaged compressed data.
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DamagedError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedError(f"damaged ({printable(reason)})") from None


def convert_rows(table: pa.Table) -> pa.Table:
    """Return rows of an earlier format as rows of MANIFEST_SCHEMA; others are returned unchanged.

    Parameters
    ----------
    table : all columns of a manifest or some of them, as read from a file.
    """
    at = table.schema.get_field_index("patches")
    if at < 0 or table.schema.field(at).type != SCHEMA_OF_FORMAT_2.field("patches").type:
        return table
    columns = [_name_boxes(chunk) for chunk in table.column(at).chunks]
    column = pa.chunked_array(columns, MANIFEST_SCHEMA.field("patches").type)
    return table.set_column(at, "patches", column).replace_schema_metadata(MANIFEST_SCHEMA.metadata)


def _name_boxes(column: pa.ListArray) -> pa.ListArray:
    """Return lists of (y, x, height, width) as lists of structs."""
    boxes = column.flatten()  # unlike `.values`, leaves out values under nulls and outside a slice
    numbers = [pc.list_element(boxes, i) for i in range(len(BOX))]
    named = pa.StructArray.from_arrays(numbers, BOX, mask=boxes.is_null())
    ends = np.append(0, np.cumsum(list_lengths(column))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), named, mask=column.is_null())


def parse_meta(text: str) -> dict[str, Any] | None:
    """Parse a row's `meta`; return None if it is not a JSON object."""
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return meta if isinstance(meta, dict) else None


def group_samples(table: pa.Table, textures: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the list of rows of each sample, in order; a failed image is a list of one row.

    `check_rows` has checked that the rows of a sample are adjacent and in the order of `index`, so this function does
    not check it again.

    Parameters
    ----------
    table : rows of `Shards.manifest`, with either all rows of a sample or none.
    textures : K, textures per image.
    """
    sample: list[dict[str, Any]] = []
    for batch in table.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            if has_failed(row):
                yield [row]
                continue
            sample.append(row)
            if len(sample) == max(textures, 1):
                yield sample
                sample = []


def has_failed(row: Mapping[str, Any]) -> bool:
    """Return True for the row of an image that failed and is in no shard."""
    return bool(row["status"] != "ok")


def is_ok(table: pa.Table) -> np.ndarray:
    """Return bool (N,): True for the rows of samples that are in shards, False for failed images."""
    return pc.fill_null(pc.equal(table["status"], "ok"), False).to_numpy().astype(bool)


def select_ok(table: pa.Table) -> pa.Table:
    """Return the rows of samples that are in shards."""
    ok = is_ok(table)
    return table if ok.all() else table.filter(pa.array(ok))  # filter copies even if it keeps all rows


def list_lengths(column: pa.Array) -> np.ndarray:
    """Return int64 (N,): the length of each list, 0 for a null."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
