"""Finish a shard directory: write the manifest from the rows of its shards, its card, then build.json.

Builds and merges both call this. Readers treat a directory without build.json as unfinished.
"""

import platform
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from texturegen.shards.build_json import COUNTS
from texturegen.shards.card import CARD, make_card, read_contents
from texturegen.shards.layout import BUILD, MANIFEST, MANIFEST_SCHEMA
from texturegen.shards.manifest import convert_rows
from texturegen.shards.writer import rows_file
from texturegen.storage.arrow import open_for_arrow
from texturegen.storage.atomic import sha256_of, write_atomically, write_json
from texturegen.storage.sealed import seal


def publish(
    directory: Path,
    description: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    ignored: int,
    packages: Sequence[str],
    **more: Any,
) -> dict[str, int]:
    """Write the manifest, the card and then build.json of a directory whose shards are all committed.

    DIR/parts/ is left in place for the caller to remove.

    Parameters
    ----------
    directory : Path
        Directory with the tars, and with their rows in parts/.
    description : mapping
        `format`, `recipe`, `source` and `texturegen` for build.json.
    shards : sequence of mapping
        Return value of `ShardWriter.commit` for each shard, in order.
    ignored : int
        Files of the data set that were skipped because they are not images.
    packages : sequence of str
        Distributions whose versions build.json records, besides Python's.
    more
        Further entries of build.json.

    Returns
    -------
    dict
        The counts: samples, textures, failed and ignored.
    """
    parts = [rows_file(directory, number) for number in range(len(shards))]
    write_atomically(directory / MANIFEST, partial(join_manifests, parts))
    counts = {**count(shards), "ignored": ignored}
    content = {
        **description,
        "counts": counts,
        "shards": [{name: value for name, value in stats.items() if name != "seconds"} for stats in shards],
        "manifest_sha256": sha256_of(directory / MANIFEST),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in packages}},
        **more,
    }
    write_atomically(directory / CARD, make_card(content, read_contents(directory / MANIFEST)))
    write_json(directory / BUILD, seal(content))
    return counts


def version_of(package: str) -> str:
    """Return the version of an installed distribution; "unknown" if it was installed under another name.

    OpenCV has four names on PyPI and others elsewhere, and a build of days must not end here because of that.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def count(shards: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the total samples, textures and failed images of several shards."""
    return {name: sum(stats[name] for stats in shards) for name in COUNTS}


def find_repeated_key(keys: pa.Array | pa.ChunkedArray) -> str | None:
    """Return a key that occurs more than once in an array of strings, or None."""
    if pc.count_distinct(keys).as_py() == len(keys):
        return None
    counts = keys.value_counts()
    repeated: str = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0].as_py()
    return repeated


def join_manifests(parts: Sequence[Path], f: IO[bytes]) -> None:
    """Write one manifest from the rows of all shards, one shard at a time to keep memory constant.

    A build that an earlier release began may hold rows of its format.
    """
    with pq.ParquetWriter(f, MANIFEST_SCHEMA) as manifest:
        for part in parts:
            manifest.write_table(convert_rows(pq.read_table(open_for_arrow(part))))
