"""Shards are written atomically, read by this package and by webdataset, and checked for damage."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from texturegen import open_shards
from texturegen.errors import UserError
from texturegen.shards import ShardWriter, verify
from texturegen.shards.layout import PARTS
from texturegen.storage.image import decode_image, encode_png
from texturegen.storage.sealed import seal


@pytest.fixture
def copy(shapes_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes_shards, tmp_path / "copy"))


def _write_one(directory: Path, commit: bool = True) -> None:
    (directory / PARTS).mkdir(parents=True, exist_ok=True)
    image = encode_png(np.zeros((4, 4, 3), np.uint8))
    with ShardWriter(directory, 0, "f") as writer:
        for place in writer.add("a-1", image, "png", [image], 3):
            writer.add_row(key="a-1", status="ok", meta="{}", **place)
        if commit:
            writer.commit()


def test_shard_is_renamed_on_commit(tmp_path: Path) -> None:
    _write_one(tmp_path / "left", commit=False)
    assert [p.name for p in (tmp_path / "left").iterdir()] == [PARTS]
    assert not list((tmp_path / "left" / PARTS).iterdir())
    _write_one(tmp_path / "done")
    assert sorted(p.name for p in (tmp_path / "done").rglob("*")) == [
        "000000.json",
        "000000.parquet",
        PARTS,
        "shard-000000.tar",
    ]


def test_files_are_synced_before_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No power can be cut here, but the order can be seen: a file's fsync, its rename, its directory's fsync.
    events: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(number: int) -> None:
        events.append(("sync", os.fstat(number).st_ino))
        fsync(number)

    def note_replace(source: Path, target: Path) -> None:
        events.append((target.name, source.stat().st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    _write_one(tmp_path)
    expected = []
    for path in (tmp_path / "shard-000000.tar", *(tmp_path / PARTS / f"000000.{kind}" for kind in ("parquet", "json"))):
        inode, parent = path.stat().st_ino, path.parent.stat().st_ino
        expected += [("sync", inode), (path.name, inode), ("sync", parent)]
    assert events == expected


def test_exception_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardWriter(tmp_path, 0, "f"):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["", "a.b", "/a", "a/", "a//b", "a/../b", "../a", "a\n", "ä", "a" * 81])
def test_unsafe_key_is_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path, 0, "f") as writer, pytest.raises(ValueError, match="use at most 80 letters"):
        writer.add(key, b"", "png", [], 0)


@pytest.mark.parametrize(
    "name", ["cls", "png", "jpg", "webp", "texture0.png", "a/b", "", ".json", "x" * 99, "__key__", "__url__"]
)
def test_reserved_or_unsafe_member_name_is_refused(tmp_path: Path, name: str) -> None:
    with ShardWriter(tmp_path, 0, "f") as writer, pytest.raises(ValueError, match="cannot pass through"):
        writer.add("a", b"", "png", [], 0, members={name: b""})


@pytest.mark.parametrize(("ext", "texture_ext"), [("gif", "png"), ("png", "gif"), ("../png", "png")])
def test_unsupported_image_type_is_refused(tmp_path: Path, ext: str, texture_ext: str) -> None:
    with ShardWriter(tmp_path, 0, "f") as writer, pytest.raises(ValueError, match="a shard holds images"):
        writer.add("a", b"", ext, [b""], 0, texture_ext)


def test_extra_members_are_at_the_manifest_offsets(tmp_path: Path) -> None:
    (tmp_path / PARTS).mkdir()
    with ShardWriter(tmp_path, 0, "f") as writer:
        first, second = writer.add("a/b-1", b"i", "png", [b"t", b"u"], 7, members={"seg.npy": b"n", "json": b"{}"})
        writer.commit()
    data = (tmp_path / "shard-000000.tar").read_bytes()
    assert "members" not in second  # only in a sample's first row
    found = {m["ext"]: data[m["offset"] : m["offset"] + m["size"]] for m in first["members"]}
    assert found == {"cls": b"7", "json": b"{}", "seg.npy": b"n"}
    assert all(hashlib.sha256(found[m["ext"]]).digest() == m["sha256"] for m in first["members"])
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert tar.getnames() == [
            f"a/b-1.{e}" for e in ("png", "texture0.png", "texture1.png", "cls", "json", "seg.npy")
        ]


def test_headers_are_independent_of_machine_and_time(shapes_shards: Path) -> None:
    with tarfile.open(shapes_shards / "shard-000000.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.mode) == (0, 0, 0, "", 0o644)
            assert not info.pax_headers


def test_samples_equal_those_of_webdataset(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    urls = [str(path) for path in sorted(shapes_shards.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert len(theirs) == len(shards) == 64
    for mine, other in zip(shards, theirs, strict=True):
        assert mine.key == other["__key__"]
        assert mine.image_bytes == other["png"]
        assert mine.texture_bytes == (other["texture0.png"],)
        assert mine.label == int(other["cls"])
        np.testing.assert_array_equal(mine.image, decode_image(other["png"]))
        np.testing.assert_array_equal(mine.textures[0], decode_image(other["texture0.png"]))


def test_samples_agree_with_manifest(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    rows = shards.manifest.to_pylist()
    assert [row["key"] for row in rows] == shards.keys
    for i in (0, 19, 20, 63, -1):
        sample, row = shards[i], rows[i]
        assert (sample.key, sample.label) == (row["key"], row["label"])
        assert sample.meta == json.loads(row["meta"])
        assert sample.image.shape == (row["height"], row["width"], 3)
        assert sample.textures.shape == (1, row["height"], row["width"], 3)
    assert shards.metas()[5] == shards[5].meta
    with pytest.raises(IndexError):
        shards[64]


def test_shards_without_textures(shapes_test_shards: Path) -> None:
    shards = open_shards(shapes_test_shards)
    assert len(shards) == 40
    assert shards[7].textures.shape == (0, 32, 32, 3)
    assert shards.image_size() == (32, 32)
    assert shards[7].meta["texture_label"] != shards[7].label


def test_open_shards_can_be_pickled(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    first = shards[0].image
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(shards))[0].image, first)


def test_verify_accepts_valid_build(shapes_shards: Path) -> None:
    counted: list[int] = []
    assert verify(shapes_shards, counted.append) == []
    assert sum(counted) == 64


def test_removed_byte_is_reported(copy: Path) -> None:
    tar = copy / "shard-000001.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[:5000] + data[5001:])
    with pytest.raises(UserError, match=r"shard-000001.tar: .* bytes, but .* were written"):
        open_shards(copy)
    faults = verify(copy)
    assert faults
    assert all("shard-000001.tar" in fault for fault in faults)


def test_changed_byte_is_reported_with_its_member(copy: Path) -> None:
    row = open_shards(copy).manifest.to_pylist()[30]
    tar = copy / row["shard"]
    data = bytearray(tar.read_bytes())
    data[row["texture_offset"] + 50] ^= 0xFF
    tar.write_bytes(data)
    faults = verify(copy)
    assert any("checksum" in fault for fault in faults)
    assert any(f"{row['key']}.texture0.png" in fault for fault in faults)
    with pytest.raises(UserError, match=row["key"]):
        open_shards(copy)[30].textures  # noqa: B018 (decodes)


def test_changed_label_is_reported(copy: Path) -> None:
    tar = copy / "shard-000000.tar"
    with tarfile.open(tar) as opened:
        member = next(info for info in opened if info.name.endswith(".cls"))
    data = bytearray(tar.read_bytes())
    data[member.offset_data] ^= 0x01
    tar.write_bytes(data)
    assert [fault for fault in verify(copy) if "checksum" in fault]


def test_member_missing_from_manifest_is_reported(copy: Path) -> None:
    with tarfile.open(copy / "shard-000002.tar", "a") as tar:
        info = tarfile.TarInfo("../evil.pyd")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    assert any("../evil.pyd: not in the manifest" in fault for fault in verify(copy))


def test_missing_file_is_reported(copy: Path, tmp_path: Path) -> None:
    (copy / "shard-000002.tar").unlink()
    assert [fault for fault in verify(copy) if "shard-000002.tar: missing" in fault]
    with pytest.raises(UserError, match=r"shard-000002.tar: missing"):
        open_shards(copy)
    (copy / "manifest.parquet").unlink()
    assert [fault for fault in verify(copy) if "manifest.parquet: missing" in fault]
    (copy / "build.json").write_text("{")
    with pytest.raises(UserError, match=r"build.json: damaged"):
        open_shards(copy)
    with pytest.raises(UserError, match="no shards here"):
        open_shards(tmp_path)
    tar = next(copy.glob("*.tar"))
    with pytest.raises(UserError, match=f"{tar}: is a file; give the directory of the shards"):
        open_shards(tar)


def test_shard_name_outside_directory_is_refused(copy: Path) -> None:
    content = json.loads((copy / "build.json").read_text())
    content["shards"][0]["name"] = "../shard-000000.tar"
    (copy / "build.json").write_text(json.dumps(seal(content)))
    with pytest.raises(UserError, match=r"build.json: damaged \(shard 0 is named"):
        open_shards(copy)


def test_wrong_counts_are_reported(copy: Path) -> None:
    table = pq.read_table(copy / "manifest.parquet")
    pq.write_table(table.slice(0, 63), copy / "manifest.parquet")
    assert any("63 samples" in fault for fault in verify(copy))


def test_webdataset_example_of_the_readme_gives_pixels(shapes_shards: Path) -> None:
    urls = [str(path) for path in sorted(shapes_shards.glob("*.tar"))]
    data = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    pairs = list(data.decode("rgb8").to_tuple("png;jpg;webp", "texture0.png", "cls"))
    for mine, (image, texture, label) in zip(open_shards(shapes_shards), pairs, strict=True):
        np.testing.assert_array_equal(image, mine.image)
        np.testing.assert_array_equal(texture, mine.textures[0])
        assert label == mine.label


def test_damage_anywhere_in_manifest_is_reported(copy: Path) -> None:
    path = copy / "manifest.parquet"
    data = path.read_bytes()
    for place in range(0, len(data), len(data) // 40):
        removed = data[:place] + data[place + 1 :]
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        for damaged in (removed, flipped):
            path.write_bytes(damaged)
            faults = verify(copy)
            assert any("manifest.parquet" in fault for fault in faults), place
        path.write_bytes(removed)
        with contextlib.suppress(UserError):  # any other exception would reach the user as a traceback
            open_shards(copy)
