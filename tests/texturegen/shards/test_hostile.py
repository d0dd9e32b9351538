"""Shards made by an attacker have no effect on the reader, and verify reports them."""

import hashlib
import io
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.texturegen.shards.test_verify import change_rows, update_checksums
from texturegen import open_shards
from texturegen.errors import DamagedError
from texturegen.shards import verify
from texturegen.shards.layout import MANIFEST
from texturegen.storage.image import decode_image


class Evil:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def _member(name: str, data: bytes = b"", **values: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for attribute, value in values.items():
        setattr(info, attribute, value)
    return info, data


HOSTILE: dict[str, Callable[[Path], tuple[tarfile.TarInfo, bytes]]] = {
    "absolute": lambda canary: _member(str(canary), b"x"),
    "upwards": lambda canary: _member("../canary", b"x"),
    "symbolic link": lambda canary: _member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": lambda canary: _member("link", type=tarfile.LNKTYPE, linkname="../../etc/passwd"),
    "device": lambda canary: _member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "pickle": lambda canary: _member("train-0.pyd", pickle.dumps(Evil(canary))),
    "claim of 10 GB": lambda canary: (_member("huge.png", size=10 * 2**30)[0], b"x" * 512),
}


def _append(path: Path, info: tarfile.TarInfo, data: bytes) -> None:
    """Insert a member with any header before the end of a tar; a small one replaces padding."""
    with tarfile.open(path) as tar:
        tar.getmembers()
        end = tar.offset
    whole = path.read_bytes()
    raw = info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    path.write_bytes((whole[:end] + raw).ljust(len(whole), b"\0"))


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_member_has_no_effect_on_reader(shapes_shards: Path, tmp_path: Path, kind: str) -> None:
    copy, canary = Path(shutil.copytree(shapes_shards, tmp_path / "in" / "copy")), tmp_path / "in" / "canary"
    good = open_shards(shapes_shards)
    tar = copy / "shard-000001.tar"
    length = tar.stat().st_size
    _append(tar, *HOSTILE[kind](canary))
    assert tar.stat().st_size == length, "it fits into the padding"
    update_checksums(copy)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for i, sample in enumerate(open_shards(copy)):
        assert sample.key == good.keys[i]
        assert sample.members == {}
        assert sample.meta == good[i].meta
        np.testing.assert_array_equal(sample.image, good[i].image)
        np.testing.assert_array_equal(sample.textures, good[i].textures)
    assert all(tar.name in fault for fault in verify(copy))
    assert verify(copy)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not canary.exists()


def test_duplicated_members_are_refused(shapes_shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shapes_shards, tmp_path / "copy"))
    tar = copy / "shard-000001.tar"
    with tarfile.open(tar) as opened:
        again = [(info, opened.extractfile(info).read()) for info in opened]  # type: ignore[union-attr]
    for info, data in again:
        _append(tar, info, data)
    update_checksums(copy)
    assert any(f"{tar}: shapes-train-00000020.png: a second member of this name" in fault for fault in verify(copy))
    with pytest.raises(DamagedError, match=r"the members of shard-000001.tar make a tar of"):
        open_shards(copy)


def test_pickle_payload_creates_its_file_when_loaded(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def _bomb(side: int = 60_000) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _tiff() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (32, 32)).save(stream, "TIFF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (_bomb(), "more than the limit of 89 million pixels"),
        (_tiff(), "not a PNG, JPEG or WebP"),
        (pickle.dumps(Evil(Path("canary"))), "not a PNG, JPEG or WebP"),
        (b"GIF89a", "not a PNG"),
    ],
)
def test_decompression_bomb_or_other_format_is_reported(
    shapes_shards: Path, tmp_path: Path, data: bytes, fault: str
) -> None:
    copy = Path(shutil.copytree(shapes_shards, tmp_path / "copy"))
    row = pq.read_table(copy / MANIFEST).to_pylist()[25]
    tar = bytearray((copy / row["shard"]).read_bytes())
    start, size = row["image_offset"], row["image_size"]
    assert len(data) <= size
    tar[start : start + size] = data.ljust(size, b"\0")
    (copy / row["shard"]).write_bytes(tar)
    change_rows(copy, lambda rows: rows[25].update(image_sha256=hashlib.sha256(tar[start : start + size]).digest()))
    assert verify(copy) == []
    (found,) = verify(copy, deep=True)
    assert f"{row['shard']}: {row['key']}.png: " in found
    sample = open_shards(copy)[25]
    with pytest.raises(DamagedError, match=f"{sample.shard}: {sample.key}: image: .*{fault}"):
        sample.image  # noqa: B018 (decodes)


def test_sources_decode_formats_not_allowed_in_shards() -> None:
    assert decode_image(_tiff()).shape == (32, 32, 3)
