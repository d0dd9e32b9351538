"""verify reports every damaged and every hostile member, with any number of workers."""

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from texturegen import open_shards
from texturegen.shards import checks
from texturegen.shards.layout import BOX, BUILD, FORMAT, MANIFEST, MANIFEST_SCHEMA, PARTS, PLACE
from texturegen.shards.verify import inspect, verify
from texturegen.shards.writer import ShardWriter
from texturegen.storage import tar as tars
from texturegen.storage.image import encode_png
from texturegen.storage.sealed import seal
from texturegen.storage.tar import BLOCK, hash_and_compare

TAR = "shard-000001.tar"


@pytest.fixture
def shards(shapes_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes_shards, tmp_path / "shards"))


@pytest.fixture
def two_textures(tmp_path: Path) -> Path:
    """Seven 4 px images in two shards, each with two textures and an extra member, and one failed image."""
    return make(tmp_path / "two", textures=2)


def make(out: Path, textures: int, samples: int = 8, failed: tuple[int, ...] = (3,), ext: str = "png") -> Path:
    (out / PARTS).mkdir(parents=True)
    stats = []
    for number in range(2):
        with ShardWriter(out, number, "f") as writer:
            for i in range(number * samples // 2, (number + 1) * samples // 2):
                about: dict[str, Any] = {"key": f"a/{i}", "position": i, "label": i % 3, "meta": "{}"}
                if i in failed:
                    writer.add_row(**{**about, "label": -1}, status="failed", error="no image")
                    continue
                image = encode_png(np.full((4, 5, 3), i, np.uint8))
                made = [encode_png(np.full((4, 5, 3), (50 + 10 * i + k) % 256, np.uint8)) for k in range(textures)]
                members = {"json": b'{"i": %d}' % i}
                for place in writer.add(about["key"], image, ext, made, about["label"], members=members):
                    quality = {"completeness": float(10 * i + place.get("index", 0))} if textures else {}
                    writer.add_row(**about, **place, **quality, status="ok", width=5, height=4)
            stats.append(writer.commit())
    tables = [pq.read_table(out / PARTS / f"{number:06d}.parquet") for number in range(2)]
    pq.write_table(pa.concat_tables(tables), out / MANIFEST)
    counts = {name: sum(stat[name] for stat in stats) for name in ("samples", "textures", "failed")}
    content = {
        "format": FORMAT,
        "recipe": {"per_image": textures, "shard_size": samples // 2, "dataset": "made", "settings": {}},
        "source": {"name": "made", "split": "train", "items": samples, "classes": ["x", "y", "z"], "digest": "d"},
        "algorithms": {"decoding": 1, "png": 1},
        "texturegen": "0",
        "counts": {**counts, "ignored": 0},
        "shards": stats,
        "manifest_sha256": hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest(),
        "versions": {},
    }
    (out / BUILD).write_text(json.dumps(seal(content)))
    shutil.rmtree(out / PARTS)
    return out


def update_checksums(directory: Path) -> None:
    """Update the checksums in build.json to the current files, as an attacker would."""
    content = json.loads((directory / BUILD).read_text())
    for shard in content["shards"]:
        data = (directory / shard["name"]).read_bytes()
        shard.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    content["manifest_sha256"] = hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    (directory / BUILD).write_text(json.dumps(seal(content)))


def change_rows(directory: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Edit the manifest's rows in place with `change`, then update the checksums."""
    rows = pq.read_table(directory / MANIFEST).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), directory / MANIFEST)
    update_checksums(directory)


def change_build(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((directory / BUILD).read_text())
    change(content)
    (directory / BUILD).write_text(json.dumps(seal(content)))


def flip(path: Path, *offsets: int) -> None:
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset] ^= 0x20
    path.write_bytes(data)


def rows_of(directory: Path, shard: str = TAR) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(directory / MANIFEST).to_pylist() if row["shard"] == shard]


@pytest.mark.parametrize("textures", [0, 1, 2])
def test_valid_directory_has_no_faults(tmp_path: Path, textures: int) -> None:
    directory = make(tmp_path / "s", textures)
    counted: list[int] = []
    assert verify(directory, counted.append, workers=2, deep=True) == []
    assert sorted(counted) == [3, 4]


def test_shard_without_samples_has_no_faults(tmp_path: Path) -> None:
    assert verify(make(tmp_path / "s", 1, failed=(0, 1, 2, 3)), deep=True) == []


def test_exactly_the_damaged_members_are_reported(two_textures: Path) -> None:
    rows = rows_of(two_textures)
    first, second, third = (rows[i : i + 2] for i in (0, 2, 4))
    label, passed = second[0]["members"]
    assert (label["ext"], passed["ext"]) == ("cls", "json")
    flip(
        two_textures / TAR,
        first[0]["image_offset"] + 3,
        second[1]["texture_offset"] + 3,
        label["offset"],
        passed["offset"],
        third[0]["texture_offset"] - BLOCK + 2,  # a header
    )
    report = inspect(two_textures)
    names = [fault.split(": ")[1] for fault in report.faults[TAR][1:]]
    assert names == ["a/4.png", "a/5.texture1.png", "a/5.cls", "a/5.json", "a/6.texture0.png"]
    assert report.damaged == [1]
    assert "checksum" in report.faults[TAR][0]
    assert list(report.faults) == [TAR]
    assert "header" in report.faults[TAR][-1]


def test_damage_in_padding_is_located(two_textures: Path) -> None:
    row = rows_of(two_textures)[0]
    flip(two_textures / TAR, row["image_offset"] + row["image_size"])  # padding
    (fault,) = verify(two_textures)
    assert "all members are intact" in fault


@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_removed_byte_is_reported(shards: Path, where: str) -> None:
    data = (shards / TAR).read_bytes()
    removed = {"start": 0, "middle": len(data) // 2, "end": len(data) - 1}[where]
    (shards / TAR).write_bytes(data[:removed] + data[removed + 1 :])
    faults = verify(shards)
    assert "checksum" in faults[0]
    assert f"{len(data) - 1} bytes, but {len(data)} were written" in faults[0]
    rows = rows_of(shards)
    shifted = {f"{row['key']}.texture0.png" for row in rows if row["texture_offset"] + row["texture_size"] > removed}
    assert {fault.split(": ")[1] for fault in faults if ".texture0.png" in fault} == shifted


def test_every_flipped_byte_is_reported(two_textures: Path) -> None:
    data = (two_textures / TAR).read_bytes()
    for offset in range(0, len(data), 97):
        (two_textures / TAR).write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        assert inspect(two_textures, workers=1).damaged == [1], offset


def test_result_is_independent_of_worker_count(shards: Path) -> None:
    for name in ("shard-000000.tar", TAR, "shard-000003.tar"):
        flip(shards / name, rows_of(shards, name)[0]["texture_offset"])
    assert verify(shards, workers=1) == verify(shards, workers=4)
    assert len(verify(shards)) == 6


def add(tar: tarfile.TarFile, name: str, data: bytes = b"evil", **about: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in about.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data) if info.isreg() else None)


def hostile_header(size: bytes, kind: bytes, name: bytes = b"a/9.png") -> bytes:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[:100], block[124:136], block[156:157] = name.ljust(100, b"\0"), size.ljust(12, b"\0"), kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


GIANT = b"\x80" + (1 << 60).to_bytes(11, "big")
HOSTILE: dict[str, tuple[Callable[[tarfile.TarFile], object], str]] = {
    "absolute path": (lambda tar: add(tar, "/etc/evil"), "/etc/evil: not in the manifest, and its name points outside"),
    "parent": (lambda tar: add(tar, "../evil.png"), "../evil.png: not in the manifest, and its name points outside"),
    "symlink": (lambda tar: add(tar, "l.png", type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0), "a symbolic link"),
    "hard link": (lambda tar: add(tar, "l.png", type=tarfile.LNKTYPE, linkname="a/4.png", size=0), "a hard link"),
    "directory": (lambda tar: add(tar, "d", type=tarfile.DIRTYPE, size=0), "a directory"),
    "duplicate": (lambda tar: add(tar, "a/4.png"), "a/4.png: a second member"),
    "fifo": (lambda tar: add(tar, "p", type=tarfile.FIFOTYPE, size=0), "a pipe"),
    "long name": (lambda tar: add(tar, "n" * 300), "an extended header"),
    "parent, as Windows has it": (lambda tar: add(tar, "..\\evil.png"), "its name points outside"),
    "escapes": (lambda tar: add(tar, "\x1b[2Jcleared"), "\\x1b[2Jcleared: not in the manifest"),
    "giant member": (lambda tar: tar.fileobj.write(hostile_header(GIANT, b"0")), "more than the file has"),
    "giant extended header": (lambda tar: tar.fileobj.write(hostile_header(GIANT, b"x")), "an extended header"),
    "negative": (lambda tar: tar.fileobj.write(hostile_header(b"-77777777777", b"0")), "is damaged"),
    "giant octal": (lambda tar: tar.fileobj.write(hostile_header(b"77777777777", b"0")), "more than the file has"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("sealed", [False, True])
def test_hostile_member_is_reported_without_side_effects(two_textures: Path, kind: str, sealed: bool) -> None:
    change, message = HOSTILE[kind]
    with tarfile.open(two_textures / TAR, "a", format=tarfile.GNU_FORMAT) as tar:
        change(tar)
    if sealed:
        update_checksums(two_textures)
    before = sorted(two_textures.parent.rglob("*"))
    tracemalloc.start()
    faults = verify(two_textures, deep=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert any(message in fault for fault in faults), faults
    # An appended member changes the size of the tar, which is also a fault of build.json.
    assert all(TAR in fault for fault in faults)
    assert all(fault.isprintable() for fault in faults)
    assert sum("checksum" in fault for fault in faults) == (not sealed)
    assert peak < 20e6
    assert sorted(two_textures.parent.rglob("*")) == before


def test_only_the_first_unexpected_members_are_listed(two_textures: Path) -> None:
    with tarfile.open(two_textures / TAR, "a") as tar:
        for i in range(500):
            add(tar, f"strange{i}")
    faults = verify(two_textures)
    assert sum("tar: strange" in fault for fault in faults) == 20
    assert len(faults) < 30
    assert "480 more members" in " ".join(faults)


def test_member_after_end_of_archive_is_reported(two_textures: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as tar:
        add(tar, "hidden.png")
        hidden = tar.fileobj.getvalue()  # type: ignore[union-attr]
    with open(two_textures / TAR, "ab") as f:
        f.write(hidden)
    update_checksums(two_textures)
    assert any("hidden.png: not in the manifest" in fault for fault in verify(two_textures))


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        (slice(156, 157), b"2", "a/4.png: a symbolic link"),
        (slice(345, 349), b"../x", "../x/a/4.png: not in the manifest, and its name points outside"),
        (slice(124, 136), b"00000000001\0", "a/4.png: its offset or size differs from the manifest"),
        (slice(0, 512), bytes(512), "a/4.png: missing from the tar"),
    ],
)
def test_forged_header_is_reported_despite_valid_checksum(
    two_textures: Path, field: slice, value: bytes, fault: str
) -> None:
    data = bytearray((two_textures / TAR).read_bytes())
    block = data[:BLOCK]
    block[field] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data[:BLOCK] = block if any(value) else value
    (two_textures / TAR).write_bytes(data)
    update_checksums(two_textures)
    faults = verify(two_textures)
    assert any(fault in found for found in faults), faults


@pytest.mark.parametrize("column", ["image_offset", "texture_offset", "texture_size"])
@pytest.mark.parametrize("change", [1, -(1 << 62), 1 << 62, 512])
def test_wrong_offset_or_size_is_reported_despite_valid_checksums(two_textures: Path, column: str, change: int) -> None:
    def move(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["key"] == "a/5" and (column == "image_offset" or row["index"] == 1):
                row[column] += change

    change_rows(two_textures, move)
    faults = verify(two_textures, deep=True)
    assert any(fault.split(": ")[1].startswith("a/5") for fault in faults), faults


def test_rows_out_of_order_are_reported(two_textures: Path) -> None:
    table = pq.read_table(two_textures / MANIFEST)
    order = [1, 0, *range(2, table.num_rows)]
    pq.write_table(table.take(order), two_textures / MANIFEST)
    update_checksums(two_textures)
    (fault,) = verify(two_textures)
    assert fault.endswith(f"{MANIFEST}: a/0: its rows are not adjacent in the order of index")


@pytest.mark.parametrize(
    ("column", "value"),
    [("key", "a/1"), ("shard", TAR), ("label", 7), ("image_ext", "jpg"), ("image_offset", 0), ("image_size", 1)],
)
def test_rows_that_describe_different_images_are_reported(two_textures: Path, column: str, value: object) -> None:
    change_rows(two_textures, lambda rows: rows[1].update({column: value}))
    (fault,) = verify(two_textures)
    assert fault.endswith(f"{MANIFEST}: a/0: its rows describe different images")


@pytest.mark.parametrize(("name", "found"), [("samples", 7), ("textures", 14), ("failed", 1)])
def test_wrong_counts_in_build_json_are_reported(two_textures: Path, name: str, found: int) -> None:
    content = json.loads((two_textures / BUILD).read_text())
    assert content["counts"][name] == found
    change_build(two_textures, lambda build: build["counts"].update({name: 5}))
    (fault,) = verify(two_textures)
    assert f"{BUILD}: damaged (counts.{name} is 5, but the shards add up to {found})" in fault

    def one_less(build: dict[str, Any]) -> None:
        for count, less in {"samples": 1, "textures": 2}.items() if name != "failed" else {"failed": 1}.items():
            build["counts"][count] = content["counts"][count] - less
            build["shards"][0][count] -= less
        build["source"]["items"] -= 1

    change_build(two_textures, one_less)
    faults = verify(two_textures)
    wrong = found - (2 if name == "textures" else 1)
    assert f"{two_textures / MANIFEST}: {found} {name}, but build.json counts {wrong}" in faults
    if name != "failed":
        assert (
            f"{two_textures / MANIFEST}: 3 samples of shard-000000.tar, but build.json counts 2 and 4 textures"
            in faults
        )
    assert all(fault.startswith(str(two_textures / MANIFEST)) for fault in faults)


def test_rows_of_unlisted_shard_are_reported(two_textures: Path) -> None:
    def remove_one(build: dict[str, Any]) -> None:
        del build["shards"][1]
        build["counts"] = {name: build["shards"][0][name] for name in ("samples", "textures", "failed")}
        build["source"]["items"] = 4

    change_build(two_textures, remove_one)
    (two_textures / TAR).unlink()
    faults = [fault.removeprefix(f"{two_textures / MANIFEST}: ") for fault in verify(two_textures)]
    assert faults[:4] == [f"a/{i}: in the shard {TAR}, which build.json does not list" for i in (4, 5, 6, 7)]
    assert faults[4:] == ["7 samples, but build.json counts 3", "14 textures, but build.json counts 6"]


def test_unreadable_shard_counts_as_damaged(two_textures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setitem(inspect.__globals__, "hash_and_compare", fail)
    report = inspect(two_textures)
    assert report.damaged == [0, 1]
    assert report.faults[TAR] == [f"{two_textures / TAR}: cannot be read (Input/output error)"]


def test_unlisted_shard_is_reported(two_textures: Path) -> None:
    shutil.copy(two_textures / TAR, two_textures / "shard-000007.tar")
    (fault,) = verify(two_textures)
    assert "shard-000007.tar: not in build.json" in fault


@pytest.mark.parametrize(
    "change", [{"recipe": {}}, {"counts": []}, {"shards": [{"name": 3}]}, {"manifest_sha256": None}, {"shards": 5}]
)
def test_invalid_build_json_is_one_fault(two_textures: Path, change: dict[str, Any]) -> None:
    change_build(two_textures, lambda build: build.update(change))
    (fault,) = verify(two_textures)
    assert f"{two_textures / BUILD}: damaged (" in fault


def test_deep_compares_sizes_and_labels_with_manifest(two_textures: Path) -> None:
    table = pq.read_table(two_textures / MANIFEST)
    for column, row, wrong in (("width", 0, 6), ("label", 0, 7), ("height", 2, 3)):
        values = table[column].to_pylist()
        values[row] = values[row + 1] = wrong
        table = table.set_column(
            table.column_names.index(column), column, pa.array(values, table.schema.field(column).type)
        )
    pq.write_table(table, two_textures / MANIFEST)
    update_checksums(two_textures)
    assert verify(two_textures) == []
    faults = [fault.split("tar: ")[1] for fault in verify(two_textures, deep=True)]
    assert faults == [
        "a/0.png: is 5x4 pixels, but the manifest records 6x4",
        "a/0.texture0.png: is 5x4 pixels, but the manifest records 6x4",
        "a/0.texture1.png: is 5x4 pixels, but the manifest records 6x4",
        "a/0.cls: is 0, but the manifest records 7",
        "a/1.png: is 5x4 pixels, but the manifest records 5x3",
        "a/1.texture0.png: is 5x4 pixels, but the manifest records 5x3",
        "a/1.texture1.png: is 5x4 pixels, but the manifest records 5x3",
    ]


def test_oversized_image_is_reported_unread(two_textures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [row["texture_size"] for row in rows_of(two_textures)]
    monkeypatch.setattr(checks, "MAX_IMAGE_BYTES", max(sizes))
    assert verify(two_textures, deep=True) == []
    monkeypatch.setattr(checks, "MAX_IMAGE_BYTES", max(sizes) - 1)
    assert any(f"has more than {max(sizes) - 1} bytes" in fault for fault in verify(two_textures))


@pytest.mark.parametrize("with_sum", [False, True])
def test_deep_detects_changed_member_despite_valid_checksum(two_textures: Path, with_sum: bool) -> None:
    row = rows_of(two_textures)[0]
    start, size = row["texture_offset"], row["texture_size"]
    flip(two_textures / TAR, start + 30)
    update_checksums(two_textures)
    assert verify(two_textures) == []
    fault = "its bytes differ from those that were written"
    if with_sum:
        data = (two_textures / TAR).read_bytes()[start : start + size]
        sha256 = hashlib.sha256(data).digest()
        change_rows(
            two_textures,
            lambda rows: [r.update(texture_sha256=sha256) for r in rows if (r["key"], r["index"]) == ("a/4", 0)],
        )
        fault = "the PNG file is"
    assert any(f"a/4.texture0.png: {fault}" in found for found in verify(two_textures, deep=True))


def test_wrong_checksum_is_attributed_to_build_json(two_textures: Path) -> None:
    change_build(two_textures, lambda build: build["shards"][1].update(sha256="0" * 64))
    report = inspect(two_textures)
    (fault,) = report.faults[BUILD]
    assert f"{BUILD}: the sha256 of {TAR} is wrong, because every byte of that shard agrees with the manifest" in fault
    assert (list(report.faults), report.damaged) == ([BUILD], [])


@pytest.mark.parametrize("column", ["method", "error"])
def test_damage_in_unread_column_is_reported(two_textures: Path, column: str) -> None:
    table = pq.read_table(two_textures / MANIFEST)
    buffers = pa.array([b"\xff\xfe"] * len(table), pa.binary()).buffers()
    damaged = pa.StringArray.from_buffers(len(table), buffers[1], buffers[2])
    pq.write_table(table.set_column(table.column_names.index(column), column, damaged), two_textures / MANIFEST)
    update_checksums(two_textures)
    (fault,) = verify(two_textures)
    assert f"{MANIFEST}: damaged (" in fault


def test_memory_is_linear_in_members(tmp_path: Path) -> None:
    """Repeating the row of a sample for each of its 8000 members would store 8000 x 8000 extents."""
    (tmp_path / PARTS).mkdir()
    with ShardWriter(tmp_path, 0, "f") as writer:
        image = encode_png(np.zeros((4, 4, 3), np.uint8))
        for place in writer.add("a", image, "png", [], 0, members={f"x{i:04d}": b"1" for i in range(8000)}):
            writer.add_row(key="a", position=0, label=0, meta="{}", status="ok", width=4, height=4, **place)
        stats = writer.commit()
    os.replace(tmp_path / PARTS / "000000.parquet", tmp_path / MANIFEST)
    counts = {name: stats[name] for name in ("samples", "textures", "failed")}
    content = {"format": FORMAT, "recipe": {"per_image": 0}, "source": {"classes": []}, "counts": counts}
    (tmp_path / BUILD).write_text(json.dumps(seal({**content, "shards": [stats]})))
    shutil.rmtree(tmp_path / PARTS)
    update_checksums(tmp_path)
    before = pa.default_memory_pool().max_memory()
    assert verify(tmp_path, workers=1, deep=True) == []
    assert pa.default_memory_pool().max_memory() - before < 100e6
    assert len(open_shards(tmp_path)[0].members) == 8000


class ShortReadFile(io.FileIO):
    """A file that returns fewer bytes than requested, as an unbuffered file may."""

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[:700])


@pytest.mark.parametrize("together", [1, 2, 2048])
@pytest.mark.parametrize("chunk", [BLOCK, 3 * BLOCK, 1 << 18])
def test_fast_header_check_accepts_written_shards(
    two_textures: Path, monkeypatch: pytest.MonkeyPatch, together: int, chunk: int
) -> None:
    # Without the fast check, verify would be correct but slow, and a timing test would depend on the machine.
    monkeypatch.setattr(tars, "HEADERS_AT_ONCE", together)
    monkeypatch.setattr(tars, "CHUNK", chunk)
    with tarfile.open(two_textures / TAR) as tar:
        found = [(info.name.encode(), info.size) for info in tar]
    names, sizes = (np.array(column) for column in zip(*found, strict=True))
    with ShortReadFile(two_textures / TAR) as f:
        sha256, right = hash_and_compare(f, names.astype("S100"), sizes)  # type: ignore[arg-type]
    assert right
    assert sha256 == hashlib.sha256((two_textures / TAR).read_bytes()).hexdigest()
    with open(two_textures / TAR, "rb", buffering=0) as f:
        assert not hash_and_compare(f, names[::-1].astype("S100"), sizes)[1]


def test_documented_columns_match_schema() -> None:
    text = (Path(__file__).parents[3] / "docs" / "shards.md").read_text()
    lines = text.split("## The manifest")[1].split("\n## ")[0].splitlines()
    cells = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in lines if line.startswith("| `")]
    in_words = {
        "list of {y, x, height, width}": f"list<item: {pa.struct([(name, pa.int32()) for name in BOX])}>",
        "list of {ext, offset, size, sha256}": f"list<item: {pa.struct(PLACE)}>",
        "binary(32)": "fixed_size_binary[32]",
        "float32": "float",
    }
    described = [(name, in_words.get(kind, kind)) for name, kind in cells]
    assert described == [(field.name, str(field.type)) for field in MANIFEST_SCHEMA]


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
def test_gnu_tar_lists_the_manifest_members(two_textures: Path) -> None:
    for name in ("shard-000000.tar", TAR):
        listed = subprocess.run(["tar", "tf", two_textures / name], capture_output=True, text=True, check=True)
        expected = []
        for row in rows_of(two_textures, name):
            if row["index"] == 0:
                expected.append(f"{row['key']}.{row['image_ext']}")
            expected.append(f"{row['key']}.texture{row['index']}.{row['texture_ext']}")
            if row["index"] == 1:
                expected += [f"{row['key']}.{ext}" for ext in ("cls", "json")]
        assert listed.stdout.splitlines() == expected
        assert listed.stderr == ""
