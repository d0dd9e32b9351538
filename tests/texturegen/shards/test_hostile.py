"""Shards made by somebody who means harm: the reader is not moved, and verify names them."""

import io
import json
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from texturegen import open_shards
from texturegen.errors import UserError
from texturegen.shards import verify
from texturegen.shards.layout import BUILD, MANIFEST, MANIFEST_SCHEMA
from texturegen.storage.image import decode_image


class Evil:
    """Unpickled, it writes a file."""

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
    """Put a member before the end of a tar, whatever its header says, and keep the length that build.json has."""
    with tarfile.open(path) as tar:
        tar.getmembers()
        end = tar.offset
    whole = path.read_bytes()
    raw = info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    path.write_bytes((whole[:end] + raw).ljust(len(whole), b"\0"))


def _set_length(directory: Path) -> None:
    content = json.loads((directory / BUILD).read_text())
    for shard in content["shards"]:
        shard["bytes"] = (directory / shard["name"]).stat().st_size
    (directory / BUILD).write_text(json.dumps(content))


@pytest.mark.parametrize("kind", [*HOSTILE, "every key twice"])
def test_a_hostile_tar_moves_nobody(shapes_shards: Path, tmp_path: Path, kind: str) -> None:
    copy, canary = Path(shutil.copytree(shapes_shards, tmp_path / "in" / "copy")), tmp_path / "in" / "canary"
    good = open_shards(shapes_shards)
    tar = copy / "shard-000001.tar"
    if kind == "every key twice":
        with tarfile.open(tar) as opened:
            again = [(info, opened.extractfile(info).read()) for info in opened]  # type: ignore[union-attr]
        for info, data in again:
            _append(tar, info, data)
    else:
        _append(tar, *HOSTILE[kind](canary))
    _set_length(copy)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    mine = open_shards(copy)
    for i, sample in enumerate(mine):
        assert sample.key == good.keys[i]
        assert sample.members == {}
        assert sample.meta == good[i].meta
        np.testing.assert_array_equal(sample.image, good[i].image)
        np.testing.assert_array_equal(sample.textures, good[i].textures)
    assert any(tar.name in fault for fault in verify(copy))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not canary.exists()


def test_the_pickle_would_have_written_its_file(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def _bomb(side: int = 60_000) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _tiff() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "TIFF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (_bomb(), "more than the limit of 89 million pixels"),
        (_tiff(), "neither a PNG nor a JPEG nor a WebP"),
        (pickle.dumps(Evil(Path("canary"))), "neither a PNG nor a JPEG nor a WebP"),
        (b"GIF89a", "neither a PNG"),
    ],
)
def test_a_bomb_or_another_type_in_an_image_is_named(
    shapes_shards: Path, tmp_path: Path, data: bytes, fault: str
) -> None:
    copy = Path(shutil.copytree(shapes_shards, tmp_path / "copy"))
    rows = pq.read_table(copy / MANIFEST).to_pylist()
    row = rows[25]
    tar = bytearray((copy / row["shard"]).read_bytes())
    row["image_size"] = max(row["image_size"], len(data))
    start, end = row["image_offset"], row["image_offset"] + row["image_size"]
    tar[start:end] = data.ljust(row["image_size"], b"\0")
    (copy / row["shard"]).write_bytes(tar)
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), copy / MANIFEST)
    sample = open_shards(copy)[25]
    with pytest.raises(UserError, match=f"{sample.shard}: {sample.key}: image: .*{fault}"):
        sample.image  # noqa: B018 (decodes)


def test_bytes_that_are_no_image_of_ours_are_still_decoded_by_sources() -> None:
    assert decode_image(_tiff()).shape == (32, 32, 3)
