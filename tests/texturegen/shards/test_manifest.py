"""`open_shards` reads every sample of exactly those directories that `verify` accepts.

Each case changes a valid directory and updates the checksums in build.json, so that only the content can be at fault.
"""

import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.texturegen.shards.test_verify import change_build, change_rows, make, update_checksums
from texturegen import open_shards
from texturegen.errors import DamagedError, UserError
from texturegen.shards.checks import check_rows
from texturegen.shards.layout import BUILD, MANIFEST, MANIFEST_SCHEMA
from texturegen.shards.manifest import group_samples, parse_meta
from texturegen.shards.verify import verify
from texturegen.storage.tar import BLOCK

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven samples in two shards, each with two textures and an extra member, and one failed image."""
    return make(tmp_path_factory.mktemp("sound") / "s", textures=2)


@pytest.fixture
def directory(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "s"))


def read_to_the_end(directory: Path) -> str | None:
    """Read every sample and property of a directory; return the error, or None."""
    try:
        shards = open_shards(directory)
        for sample in shards:
            sample.image, sample.textures, sample.meta, sample.members  # noqa: B018 (reads)
        shards.metas()
        shards.manifest  # noqa: B018 (reads)
    except UserError as error:
        return str(error)
    return None


def assert_agreement(directory: Path, is_accepted: bool | None = None) -> None:
    error, faults = read_to_the_end(directory), verify(directory, workers=1, deep=True)
    assert (error is None) == (faults == []), (error, faults)
    if is_accepted is not None:
        assert (error is None) == is_accepted, error
    for text in [*faults, *([error] if error else [])]:
        assert text.isprintable()
        assert str(directory) in text


def rows(edit: Callable[[list[dict[str, Any]]], object]) -> Change:
    return lambda directory: change_rows(directory, edit)


def in_row(number: int, **values: Any) -> Change:
    """Change one row: 0 and 1 are a/0, 2 and 3 are a/1, 6 is the failed a/3, 7 and 8 are a/4 in the second shard."""
    return rows(lambda rows: rows[number].update(values))


def in_sample(number: int, **values: Any) -> Change:
    """Change both rows of the sample a/`number`."""
    return rows(lambda rows: [row.update(values) for row in rows if row["key"] == f"a/{number}"])


def in_members(number: int, member: int, **values: Any) -> Change:
    return rows(lambda rows: rows[number]["members"][member].update(values))


def in_build(edit: Callable[[dict[str, Any]], object]) -> Change:
    return lambda directory: change_build(directory, edit)


def put_image(data: bytes) -> Change:
    """Overwrite the first texture with other bytes, which must fit, and update all checksums."""

    def change(directory: Path) -> None:
        row = pq.read_table(directory / MANIFEST).to_pylist()[0]
        tar = bytearray((directory / row["shard"]).read_bytes())
        start, size = row["texture_offset"], row["texture_size"]
        padded = data.ljust(size, b"\0")[:size]
        tar[start : start + size] = padded
        (directory / row["shard"]).write_bytes(tar)
        change_rows(directory, lambda rows: rows[0].update(texture_sha256=hashlib.sha256(padded).digest()))

    return change


def encode(format_: str, size: tuple[int, int] = (5, 4)) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, 9).save(stream, format_)
    return stream.getvalue()


def swap(first: int, second: int) -> Change:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[first], rows[second] = rows[second], rows[first]

    return rows(edit)


def reschema(edit: Callable[[pa.Table], pa.Table]) -> Change:
    def change(directory: Path) -> None:
        pq.write_table(edit(pq.read_table(directory / MANIFEST)), directory / MANIFEST)
        update_checksums(directory)

    return change


def all_failed(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row.update(status="failed")


PNG = cv2.imencode(".png", np.full((4, 5, 3), 200, np.uint8))[1].tobytes()

REFUSED: dict[str, Change] = {
    # keys
    "key leads upwards": in_sample(0, key="../../evil"),
    "key is absolute": in_sample(0, key="/etc/evil"),
    "key with a dot": in_sample(0, key="a.b"),
    "key with a line break": in_sample(0, key="a\n"),
    "key with a control character": in_sample(0, key="a\x1b[2J"),
    "key is empty": in_sample(0, key=""),
    "key is not ASCII": in_sample(0, key="caf\u00e9"),
    "key of 81 characters": in_sample(0, key="a" * 81),
    "key twice": in_sample(1, key="a/0"),
    "key null": in_row(0, key=None),
    "key of the failed image null": in_row(6, key=None),
    # meta
    "meta null": in_row(0, meta=None),
    "meta is a list": in_sample(0, meta="[]"),
    "meta is not JSON": in_sample(4, meta="{"),
    "meta is nested too deep": in_sample(4, meta="[" * 100_000),
    "meta is empty": in_sample(0, meta=""),
    "meta differs in a sample": in_row(1, meta='{"a": 1}'),
    # values
    "label below -1": in_sample(0, label=-2),
    "label null": in_row(0, label=None),
    "label differs in a sample": in_row(1, label=7),
    "width 0": in_sample(0, width=0),
    "height negative": in_sample(0, height=-4),
    "width differs from the image": in_sample(0, width=6),
    "width differs in a sample": in_row(1, width=6),
    "status unknown": in_row(0, status="fine"),
    "status null": in_row(0, status=None),
    "status failed in one row": in_row(1, status="failed"),
    "all failed": rows(all_failed),
    "no rows": rows(lambda rows: rows.clear()),
    "failed image in a shard": in_row(6, shard="shard-000000.tar"),
    "failed image with an index": in_row(6, index=0),
    # rows
    "a row is missing": rows(lambda rows: rows.pop(1)),
    "a sample is missing": rows(lambda rows: rows.__delitem__(slice(0, 2))),
    "the failed image is missing": rows(lambda rows: rows.pop(6)),
    "a row twice": rows(lambda rows: rows.insert(0, dict(rows[0]))),
    "rows out of order": swap(0, 1),
    "rows of two samples interleaved": swap(1, 2),
    "a failed image within a sample": swap(5, 6),
    "samples of a later shard first": rows(lambda rows: rows.insert(0, rows.pop()) or rows.insert(0, rows.pop(-1))),
    "index null": in_row(0, index=None),
    "index too large": in_row(1, index=2),
    # shards
    "shard not listed": in_sample(0, shard="shard-000002.tar"),
    "shard leads upwards": in_sample(0, shard="../shard-000000.tar"),
    "shard null": in_row(0, shard=None),
    "shard is the second one": in_sample(0, shard="shard-000001.tar"),
    # places
    "offset -2**63": in_sample(0, image_offset=-(2**63)),
    "offset 2**63 - 1": in_row(0, texture_offset=2**63 - 1),
    "offset 0": in_sample(0, image_offset=0),
    "offset one byte too large": in_row(0, texture_offset=2 * BLOCK + BLOCK + 1),
    "offset null": in_row(0, texture_offset=None),
    "size -1": in_row(0, texture_size=-1),
    "size 2**62": in_row(0, texture_size=2**62),
    "size null": in_sample(0, image_size=None),
    "texture at the offset of the image": rows(lambda rows: rows[0].update(texture_offset=rows[0]["image_offset"])),
    "sha256 null": in_row(0, texture_sha256=None),
    "image's sha256 differs in a sample": in_row(1, image_sha256=bytes(32)),
    # extensions and members
    "image of type pyd": in_sample(0, image_ext="pyd"),
    "texture of type tif": in_row(0, texture_ext="tif"),
    "texture of two types": in_row(0, texture_ext="jpg"),
    "texture's type null": in_row(0, texture_ext=None),
    "members null": in_row(0, members=None),
    "members empty": in_row(0, members=[]),
    "members in the second row": rows(lambda rows: rows[1].update(members=rows[0]["members"])),
    "member without extension": in_members(0, 1, ext=None),
    "member with an empty extension": in_members(0, 1, ext=""),
    "member leads upwards": in_members(0, 1, ext="../x"),
    "member named like an image": in_members(0, 1, ext="png"),
    "member named like a texture": in_members(0, 1, ext="texture7.png"),
    "member with WebDataset's name": in_members(0, 1, ext="__url__"),
    "member with too long a name": in_members(0, 1, ext="x" * 97),
    "member twice": in_members(0, 1, ext="cls"),
    "members not sorted": in_members(0, 1, ext="a"),
    "label's member missing": in_members(0, 0, ext="clt"),
    "member outside": in_members(0, 1, offset=10**9),
    "member of negative size": in_members(0, 1, size=-3),
    "member without checksum": in_members(0, 1, sha256=None),
    # images
    "BMP named png": put_image(encode("BMP")),
    "GIF named png": put_image(encode("GIF")),
    "no image": put_image(b"hello"),
    "image of another size": put_image(encode("PNG", (4, 5))),
    "truncated PNG": put_image(PNG[:-20]),
    # the file
    "not Parquet": lambda directory: [(directory / MANIFEST).write_bytes(b"PAR1" * 9), update_checksums(directory)],
    "empty file": lambda directory: [(directory / MANIFEST).write_bytes(b""), update_checksums(directory)],
    "a column is missing": reschema(lambda table: table.drop_columns(["seed"])),
    "columns in another order": reschema(lambda table: table.select(sorted(table.column_names))),
    "a column of another type": reschema(
        lambda table: table.set_column(4, "label", pa.array([str(label) for label in table["label"]]))
    ),
    # build.json
    "build.json is a list": lambda directory: (directory / BUILD).write_text("[]"),
    "build.json is not JSON": lambda directory: (directory / BUILD).write_text("{"),
    "build.json is not UTF-8": lambda directory: (directory / BUILD).write_bytes(b'{"format": "\xff"}'),
    "build.json is nested too deep": lambda directory: (directory / BUILD).write_text("[" * 100_000),
    "per_image differs": in_build(lambda build: build["recipe"].update(per_image=1)),
    "per_image is huge": in_build(lambda build: build["recipe"].update(per_image=2**61)),
    "per_image is true": in_build(lambda build: build["recipe"].update(per_image=True)),
    "counts differ": in_build(lambda build: build["counts"].update(failed=0)),
    "textures of a shard differ": in_build(lambda build: build["shards"][0].update(textures=7)),
    "samples moved between shards": in_build(
        lambda build: [
            build["shards"][i].update(samples=3 + 2 * (1 - i), textures=2 * (3 + 2 * (1 - i))) for i in (0, 1)
        ]
    ),
    "bytes of a shard differ": in_build(lambda build: build["shards"][0].update(bytes=10240 * 9)),
    "bytes are huge": in_build(lambda build: build["shards"][0].update(bytes=2**62)),
    "shard named elsewhere": in_build(lambda build: build["shards"][0].update(name="../s/shard-000000.tar")),
    "shard listed twice": in_build(lambda build: build["shards"].append(build["shards"][0])),
    "shards in another order": in_build(lambda build: build["shards"].reverse()),
    "checksum is not a SHA-256": in_build(lambda build: build["shards"][0].update(sha256="no")),
    "manifest's checksum is missing": in_build(lambda build: build.pop("manifest_sha256")),
    "manifest's checksum differs": in_build(lambda build: build.update(manifest_sha256="0" * 64)),
    "class name is a number": in_build(lambda build: build["source"].update(classes=["x", 1])),
    "number of images differs": in_build(lambda build: build["source"].update(items=3)),
    # the tars
    "shard missing": lambda directory: (directory / "shard-000001.tar").unlink(),
    "shard truncated": lambda directory: (directory / "shard-000001.tar").write_bytes(
        (directory / "shard-000001.tar").read_bytes()[:-1]
    ),
    "shard with more zeros": lambda directory: [
        (directory / "shard-000001.tar").open("ab").write(bytes(10240)),
        update_checksums(directory),
    ],
}

ACCEPTED: dict[str, Change] = {
    "nothing": lambda directory: None,
    "another position": in_row(0, position=77),
    "label -1 without a class": in_build(lambda build: build["source"].update(classes=[])),
    "null method, seed and quality": in_row(0, method=None, seed=None, patches=None, completeness=None),
    "meta with content": in_sample(0, meta='{"a": [1, null], "\u00e9": NaN}'),
    "failed image without a reason": in_row(6, error=None),
    "many row groups": lambda directory: [
        pq.write_table(pq.read_table(directory / MANIFEST), directory / MANIFEST, row_group_size=2),
        update_checksums(directory),
    ],
    "further entries in build.json": in_build(lambda build: build.update(extra=1, derived={"operation": "merge"})),
    "PNG of another compression": put_image(PNG),
}
# Only the bytes of members reach a reader. What else a tar holds `verify` alone compares.
VERIFY_ONLY: dict[str, Change] = {
    "label differs from the tar": in_sample(0, label=7),
    "key length differs from the tar": in_sample(0, key="a/00"),
    "size one byte too large, within the padding": rows(
        lambda rows: rows[0].update(texture_size=rows[0]["texture_size"] + 1)
    ),
    "member name differs from the tar": in_members(0, 1, ext="jsom"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_reader_refuses_what_verify_reports(directory: Path, case: str) -> None:
    REFUSED[case](directory)
    assert_agreement(directory, is_accepted=False)


@pytest.mark.parametrize("case", ACCEPTED)
def test_reader_reads_what_verify_accepts(directory: Path, case: str) -> None:
    ACCEPTED[case](directory)
    assert_agreement(directory, is_accepted=True)


@pytest.mark.parametrize("case", VERIFY_ONLY)
def test_only_verify_reports_names_and_labels_that_differ_from_tar(directory: Path, case: str) -> None:
    """The reader does not read headers: it returns the bytes at the manifest's offset."""
    VERIFY_ONLY[case](directory)
    assert verify(directory, deep=True)


def test_case_tables_are_not_truncated() -> None:
    assert len(REFUSED) + len(ACCEPTED) > 100


INTEGERS = (-(2**63), -513, -1, 0, 1, 2, 511, 512, 513, 2**31 - 1, 2**62, 2**63 - 1)
TEXTS = (
    "",
    "a",
    "a/0",
    "a/1",
    "../a",
    "png",
    "jpg",
    "cls",
    "json",
    "ok",
    "failed",
    "shard-000001.tar",
    "{}",
    "\x1b",
    "\u00e9",
)


@pytest.mark.parametrize("seed", range(60))
def test_reader_and_verify_agree_on_random_manifests(directory: Path, seed: int) -> None:
    draw = random.Random(seed)

    def edit(rows: list[dict[str, Any]]) -> None:
        for _ in range(draw.choice((1, 1, 2))):
            row = draw.choice(rows)
            column = draw.choice([name for name in row if not name.startswith(("pa", *"cv"))])
            kind = MANIFEST_SCHEMA.field(column).type
            value: Any = None
            if pa.types.is_integer(kind):
                old = row[column] or 0
                low, high = -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1
                value = min(max(draw.choice([*INTEGERS, old + 1, old - 512, old + 512]), low), high)
            elif pa.types.is_string(kind):
                value = draw.choice(TEXTS)
            elif column == "members" and row["members"]:
                value = [dict(member) for member in row["members"]]
                member = draw.choice(value)
                name = draw.choice(("ext", "offset", "size"))
                member[name] = draw.choice(TEXTS if name == "ext" else INTEGERS)
            row[column] = draw.choice((value, value, value, None))
            if draw.random() < 0.2:
                position = draw.randrange(len(rows))
                rows.insert(position, rows.pop(draw.randrange(len(rows))))

    change_rows(directory, edit)
    error, faults = read_to_the_end(directory), verify(directory, workers=1, deep=True)
    if error:
        assert faults
    else:  # what only verify compares is about a shard, never about the manifest
        assert all(f"{directory}/shard-" in fault for fault in faults)
    assert all(fault.isprintable() for fault in faults)


@pytest.mark.parametrize("name", [BUILD, MANIFEST])
def test_random_bytes_raise_only_user_errors(directory: Path, name: str) -> None:
    whole, draw = (directory / name).read_bytes(), random.Random(0)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 5))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        (directory / name).write_bytes(data)
        error = read_to_the_end(directory)
        try:
            faults = verify(directory, workers=1)
        except UserError:  # another format, or a directory without a build
            assert error is not None
            continue
        if name == MANIFEST and bytes(data) != whole:
            assert error is not None
            assert faults
        assert all("\n" not in fault for fault in faults)


@pytest.mark.parametrize("number", [0, 1])
def test_column_name_with_invalid_utf8_is_a_user_error(directory: Path, number: int) -> None:
    """The footer contains the name twice: in the schema and in the metadata of the column chunk."""
    path = directory / MANIFEST
    data = bytearray(path.read_bytes())
    positions = [at for at in range(len(data)) if data.startswith(b"image_offset", at)]
    data[positions[number]] = 0xFF
    path.write_bytes(data)
    assert any(f"{path}: checksum differs" in fault for fault in verify(directory))
    with pytest.raises(DamagedError, match=f"{path}: its checksum differs"):
        open_shards(directory)
    update_checksums(directory)
    assert_agreement(directory)


def test_faults_start_with_their_key(directory: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[0]["label"] = rows[1]["label"] = -5
        rows[2]["width"] = rows[3]["width"] = 0
        rows[8]["key"] = "../x"

    change_rows(directory, edit)
    with pytest.raises(DamagedError, match=rf"{directory / MANIFEST}: \.\./x: is not a valid key"):
        open_shards(directory)
    assert [fault.removeprefix(f"{directory / MANIFEST}: ") for fault in verify(directory)] == [
        "../x: is not a valid key; keys are segments of letters, digits, _ and - with / between them",
        "a/0: its label is less than -1",
        "a/1: its width is not positive",
    ]


def test_repeated_fault_is_counted(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", textures=0, samples=100, failed=())
    change_rows(directory, lambda rows: [row.update(width=0) for row in rows])
    faults = verify(directory)
    assert len(faults) == 21
    assert "80 more rows have the same fault as a/0" in faults[-1]


def test_group_samples_yields_all_rows_of_a_sample(sound: Path) -> None:
    shards = open_shards(sound)
    groups = list(group_samples(shards.manifest, 2))
    assert [len(group) for group in groups] == [2, 2, 2, 1, 2, 2, 2, 2]
    assert [row["key"] for group in groups for row in group] == shards.manifest["key"].to_pylist()
    assert [group[0]["index"] for group in groups] == [0, 0, 0, None, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "meta"), [("{}", {}), ('{"a": 1}', {"a": 1}), ("[]", None), ("", None), ("{", None), ("[" * 10**5, None)]
)
def test_parse_meta_accepts_only_json_objects(text: str, meta: object) -> None:
    assert parse_meta(text) == meta


def test_check_rows_returns_index_only_if_all_rows_are_valid(sound: Path) -> None:
    build, table = json.loads((sound / BUILD).read_text()), pq.read_table(sound / MANIFEST)
    files = [shard["name"] for shard in build["shards"]]
    samples, faults = check_rows(table, build, files)
    assert samples is not None
    assert faults == []
    assert samples.keys == [f"a/{i}" for i in (0, 1, 2, 4, 5, 6, 7)]
    assert samples.extents.shape == (7, 3, 2)
    assert (np.diff(samples.ranges[:3], axis=0) > 0).all()
    build["counts"]["failed"] = 2
    samples, faults = check_rows(table, build, files)
    assert samples is not None
    assert faults == ["1 failed, but build.json counts 2"]
    assert check_rows(table.slice(1), build, files)[0] is None
