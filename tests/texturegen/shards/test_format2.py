"""Directories of format 2, from before boxes had names, are read, copied, repaired and finished.

The bytes in format2/ were written by that version: `finished` is a build of `source`, `begun` a part of the same build.
"""

import json
import shutil
import tarfile
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.texturegen.shards.test_verify import make
from texturegen import open_shards
from texturegen.builds import Recipe, build, finish
from texturegen.builds.repair import repair
from texturegen.shards.index import INDEXES, write_indexes
from texturegen.shards.layout import BOX, BUILD, FORMAT, MANIFEST, MANIFEST_SCHEMA
from texturegen.shards.manifest import convert_rows
from texturegen.shards.merge import merge, split
from texturegen.shards.verify import verify
from texturegen.storage.sealed import seal

STORED = Path(__file__).parent / "format2"
SOURCE = str(STORED / "source")
RECIPE = Recipe("webdataset", per_image=2, shard_size=3, method="quilting")
TARS = ("shard-000000.tar", "shard-000001.tar")

builds_again = pytest.mark.skipif(
    version("opencv-python-headless")
    != json.loads((STORED / "finished" / BUILD).read_text())["versions"]["opencv-python-headless"],
    reason="another version of OpenCV, which decides the bytes of a texture's file, wrote the stored shards",
)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return shutil.copytree(STORED / "finished", tmp_path / "finished")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    out = shutil.copytree(STORED / "begun", tmp_path / "begun")
    shutil.copy2(STORED / "finished" / TARS[0], out)
    return out


def format_of(directory: Path) -> tuple[int, bytes, bool]:
    """Return the format that build.json and the manifest's metadata name, and whether boxes have names."""
    schema = pq.read_schema(directory / MANIFEST)
    number = json.loads((directory / BUILD).read_text())["format"]
    return number, schema.metadata[b"texturegen.format"], schema.equals(MANIFEST_SCHEMA)


def test_every_byte_and_every_row_is_read() -> None:
    assert format_of(STORED / "finished") == (2, b"2", False)
    shards = open_shards(STORED / "finished")
    with tarfile.open(STORED / "source" / "set-000000.tar") as tar:
        given = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert shards.keys == ["a", "b", "c", "e"]
    for sample, ext in zip(shards, ("png", "jpg", "png", "webp"), strict=True):
        assert sample.image_bytes == given[f"{sample.key}.{ext}"]
        assert sample.members == {"json": given[f"{sample.key}.json"]}
        assert sample.label == int(given[f"{sample.key}.cls"])
        assert sample.textures.shape == (2, 24, 24, 3)
    stored = pq.read_table(STORED / "finished" / MANIFEST)
    assert shards.manifest.schema.equals(MANIFEST_SCHEMA)
    assert shards.manifest.schema.metadata == MANIFEST_SCHEMA.metadata
    assert shards.manifest.drop(["patches"]).equals(stored.drop(["patches"]))
    boxes = [[[*box.values()] for box in row] if row else row for row in shards.manifest["patches"].to_pylist()]
    assert boxes == stored["patches"].to_pylist()
    assert [boxes.count(None), {len(row) for row in boxes if row}] == [1, {2}]
    assert verify(STORED / "finished", deep=True) == []


def test_boxes_that_are_null_stay_null() -> None:
    rows = [[[1, 2, 3, 4], None], None, [], [[5, 6, 7, None]]]
    table = pa.table({"key": ["a", "b", "c", "d"], "patches": pa.array(rows, pa.list_(pa.list_(pa.int32(), 4)))})
    named = [dict(zip(BOX, values, strict=True)) for values in ((1, 2, 3, 4), (5, 6, 7, None))]
    expected = [[named[0], None], None, [], [named[1]]]
    assert convert_rows(table)["patches"].to_pylist() == expected
    table = pa.concat_tables([table.slice(2), table.slice(0, 1)])
    assert convert_rows(table)["patches"].to_pylist() == [*expected[2:], expected[0]]
    assert convert_rows(table.select(["key"])) == table.select(["key"])


def test_split_and_merge_write_the_present_format(tmp_path: Path) -> None:
    a, b, other, both = (tmp_path / name for name in ("a", "b", "other", "both"))
    split(STORED / "finished", a, b, where="key in ('a', 'e')")
    present = make(other, textures=2)
    content = json.loads((present / BUILD).read_text())
    content["source"]["classes"] = []
    (present / BUILD).write_text(json.dumps(seal(content)))
    assert merge([STORED / "finished", present], both)["samples"] == 4 + len(open_shards(present))
    rows = open_shards(STORED / "finished").manifest.to_pylist()
    for directory, expected in ((a, [*rows[:2], *rows[7:]]), (b, rows[2:7]), (both, rows)):
        assert format_of(directory) == (FORMAT, b"%d" % FORMAT, True)
        assert verify(directory, deep=True) == []
        found = open_shards(directory).manifest.to_pylist()
        for row, before in zip(found, expected, strict=False):
            assert {**row, "shard": 0, "image_offset": 0, "texture_offset": 0, "members": 0} == {
                **before, "shard": 0, "image_offset": 0, "texture_offset": 0, "members": 0
            }  # fmt: skip


def test_index_files_are_written_and_verified(finished: Path) -> None:
    assert len(write_indexes(finished, [*INDEXES])) > len(INDEXES)
    assert verify(finished) == []


@builds_again
def test_repair_leaves_the_format(finished: Path) -> None:
    (finished / TARS[1]).unlink()
    assert repair(finished, root=SOURCE, workers=0).rebuilt == [TARS[1]]
    for name in (*TARS, MANIFEST, BUILD):
        assert (finished / name).read_bytes() == (STORED / "finished" / name).read_bytes()


@builds_again
def test_a_begun_build_is_finished_in_the_present_format(begun: Path, tmp_path: Path) -> None:
    array = shutil.copytree(begun, tmp_path / "array")
    build(RECIPE, tmp_path / "whole", root=SOURCE, workers=0)
    kept = (begun / TARS[0]).stat().st_mtime_ns
    build(RECIPE, begun, root=SOURCE, workers=0)
    assert (begun / TARS[0]).stat().st_mtime_ns == kept
    build(RECIPE, array, root=SOURCE, workers=0, part=(2, 2))
    finish(array)
    for directory in (begun, array):
        assert format_of(directory) == (FORMAT, b"%d" % FORMAT, True)
        for name in (*TARS, MANIFEST):
            assert (directory / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@builds_again
def test_the_same_command_finds_the_build_finished_and_a_retry_converts_it(finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert build(RECIPE, finished, root=SOURCE, workers=0).counts["failed"] == 1
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    build(RECIPE, finished, root=SOURCE, workers=0, retry_failed=True)
    assert format_of(finished) == (FORMAT, b"%d" % FORMAT, True)
    assert [(finished / name).read_bytes() for name in TARS] == [before[name] for name in TARS]
    assert verify(finished, deep=True) == []
