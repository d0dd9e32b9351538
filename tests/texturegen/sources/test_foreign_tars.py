"""Tars that others wrote: labels as names and in JSON, keys that tars share, compression; headers are read once."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.texturegen.sources.test_webdataset import open_tars, write_tar
from texturegen.builds import Recipe, build
from texturegen.builds.listing import read_listing, write_listing
from texturegen.errors import DamagedError, ImageError, SourceLost, UserError
from texturegen.shards import open_shards
from texturegen.sources import open_source, tar_listing
from texturegen.sources.patterns import File
from texturegen.sources.tar_index import index_tar
from texturegen.storage.image import encode_png

Encode = Callable[..., bytes]


@pytest.fixture(scope="module")
def small() -> bytes:
    return encode_png(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8))


def labelled(small: bytes, ext: str, texts: list[bytes]) -> list[tuple[str, bytes]]:
    return [(f"s{i}.{e}", data) for i, text in enumerate(texts) for e, data in (("png", small), (ext, text))]


def labels(source: Any) -> list[int]:
    return [source[i].label for i in range(len(source))]


@pytest.mark.parametrize(
    ("label", "ext", "texts"),
    [
        ("cls", "cls", [b"dog", b"cat\n", b" dog", "\u00e9lan".encode()]),
        ("txt", "txt", [b"\xef\xbb\xbfdog\r\n", b"cat\r\n", b"dog", "\u00e9lan".encode()]),  # as of Windows programs
        ("json:label", "json", [json.dumps({"label": name}).encode() for name in ("dog", "cat", "dog", "\u00e9lan")]),
        ("json:a.b", "json", [json.dumps({"a": {"b": n}}).encode() for n in ("dog", "cat", "dog", "\u00e9lan")]),
    ],
)
def test_class_names_are_collected_and_sorted(
    label: str, ext: str, texts: list[bytes], small: bytes, tmp_path: Path
) -> None:
    write_tar(tmp_path / "a.tar", labelled(small, ext, texts))
    source = open_tars(tmp_path, label=label)
    assert source.classes == ["cat", "dog", "\u00e9lan"]
    assert labels(source) == [1, 0, 1, 2]
    assert source[0].members == ({} if label == "cls" else {ext: texts[0]})
    given = open_tars(tmp_path, label=label, classes=["dog", "\u00e9lan", "cat"])
    assert labels(given) == [0, 2, 0, 1]
    assert given.digest != source.digest
    short = open_tars(tmp_path, label=label, classes=["dog", "cat"])
    with pytest.raises(ImageError, match=r"which is not a class .* names are dog, cat; add it to --classes"):
        short[3]


def test_numbers_in_json_are_labels_and_other_fields_are_named(small: bytes, tmp_path: Path) -> None:
    values: list[Any] = [3, "7", -1, 1.5, True, None, ["x"], "1e5"]
    texts = [json.dumps({"label": value}).encode() for value in values]
    write_tar(tmp_path / "a.tar", [*labelled(small, "json", [*texts, b"{", b'{"other": 1}', b"[]"]), ("z.png", small)])
    source = open_tars(tmp_path, label="json:label")
    assert source.classes == []
    assert [source[i].label for i in (0, 1, 2, 5, 11)] == [3, 7, -1, -1, -1]
    for i in (3, 4, 6, 7):
        with pytest.raises(ImageError, match=r"json:label holds .*, which is neither a class number nor a class name"):
            source[i]
    for i, message in (
        (8, "json is not JSON"),
        (9, r"no field label \(there are other\)"),
        (10, r"\(there are list\)"),
    ):
        with pytest.raises(ImageError, match=message):
            source[i]
    for bad in ("json:", ":x", "a b", ""):
        with pytest.raises(UserError, match="does not say where labels are; use for example label=cls"):
            open_tars(tmp_path, label=bad)


def test_label_elsewhere_keeps_the_cls_of_the_tar(small: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", small), ("a.cls", b"5"), ("a.json", b'{"label": 2}')])
    item = open_tars(tmp_path, label="json:label")[0]
    assert (item.label, item.members) == (2, {"json": b'{"label": 2}', "other.cls": b"5"})


def test_keys_that_start_anew_get_the_name_of_their_tar(small: bytes, tmp_path: Path) -> None:
    for name in ("train-0", "train.v2 1"):
        write_tar(tmp_path / f"{name}.tar", [("0001.png", small), ("0002.png", small)])
    with pytest.raises(UserError, match=r"the key 0001 is in .* with --source-option key=tar/key"):
        open_tars(tmp_path)
    options = {"key": "tar/key"}
    source = open_tars(tmp_path, **options)
    assert [source[i].key for i in range(4)] == [f"{t}/000{i}" for t in ("train-0", "train_v2_1") for i in (1, 2)]
    build(Recipe("webdataset", source_options=options, per_image=0), tmp_path / "out", str(tmp_path), workers=0)
    assert open_shards(tmp_path / "out").keys[2] == "train_v2_1/0001"
    write_tar(tmp_path / "other" / "train-0.tar", [("0001.png", small)])
    with pytest.raises(UserError, match="key=tar/key: 2 tars are called train-0; rename them"):
        open_tars(f"{tmp_path}/{{train-0,other/train-0}}.tar", **options)
    with pytest.raises(UserError, match="key is 'tar'; it must be key, or tar/key"):
        open_tars(tmp_path, key="tar")


def test_images_are_looked_for_in_the_order_given(encode: Encode, tmp_path: Path) -> None:
    png, jpg = encode("RGB", "PNG"), encode("RGB", "JPEG")
    write_tar(tmp_path / "a.tar", [("a.jpg", jpg), ("a.png", png), ("b.png", png), ("c.jpeg", jpg)])
    source = open_tars(tmp_path, image="jpg, .JPEG,png")
    assert [source[i].data for i in range(3)] == [jpg, png, jpg]
    assert source[0].members == {"other.png": png}, "a mask beside an image of the same stem passes through"
    assert open_tars(tmp_path, image=["jpg", "jpeg", "png"]).digest == source.digest
    with pytest.raises(UserError, match="'' cannot be the extension of an image"):
        open_tars(tmp_path, image="jpg,")


def test_renamed_keys_keep_the_old_one(small: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("my photo.png", small), ("fine.png", small)])
    source = open_tars(tmp_path, rename_keys=True)
    assert source[0].key.startswith("my_photo-")
    assert [source[i].meta for i in (0, 1)] == [{"tar": "a.tar", "key": "my photo"}, {"tar": "a.tar"}]


@pytest.mark.parametrize(
    ("name", "compress"),
    [("a.tgz", gzip.compress), ("a.tar.bz2", bz2.compress), ("a.tar.xz", lzma.compress), ("named.tar", gzip.compress)],
)
def test_compressed_tars_are_read_as_streams(
    name: str,
    compress: Callable[[bytes], bytes],
    small: bytes,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("texturegen.sources.tar_streams.KEPT", 1000)
    monkeypatch.setattr("texturegen.sources.tar_streams.STEP", 700)
    members = [(f"k{i}.{e}", data) for i in range(6) for e, data in (("png", small), ("npy", os.urandom(900)))]
    plain = write_tar(tmp_path / "plain" / "a.tar", members)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(compress(plain.read_bytes()))
    source, expected = open_tars(tmp_path / "in"), open_tars(plain)
    said = capfd.readouterr().err
    assert f"warning: 1 of 1 tars are compressed, such as {name}: every worker decompresses a tar" in said
    for i in (0, 1, 4, 2, 5, 0):  # forward and back
        assert source[i].members == expected[i].members
        assert (source[i].key, source[i].data) == (expected[i].key, small)
    build(Recipe("webdataset", shard_size=4, per_image=0), tmp_path / "out", str(tmp_path / "in"), workers=0)
    assert len(open_shards(tmp_path / "out")) == 6


def test_damaged_compressed_tar_is_one_line(small: bytes, tmp_path: Path) -> None:
    data = bytearray(gzip.compress(write_tar(tmp_path / "x", [("a.png", os.urandom(90000))]).read_bytes()))
    data[5000:6000] = bytes(1000)
    (tmp_path / "a.tar.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tar\.gz") as caught:
        open_tars(tmp_path / "a.tar.gz")
    assert "\n" not in str(caught.value)


def test_headers_are_read_once_for_a_build(small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        write_tar(tmp_path / "in" / f"{i}.tar", labelled(small, "cls", [b"dog", b"cat"])[:: 1] if i == 0 else
                  [(f"t{i}.png", small), (f"t{i}.cls", b"dog")])  # fmt: skip
    read: list[str] = []

    def counted(name: str, *arguments: Any) -> Any:
        read.append(name)
        return index_tar(name, *arguments)

    monkeypatch.setattr(tar_listing, "index_tar", counted)
    build(Recipe("webdataset", shard_size=1, per_image=0), tmp_path / "out", str(tmp_path / "in"), workers=0)
    assert len(read) == 3, "a tar each, though four shards open the source"
    shards = open_shards(tmp_path / "out")
    assert (shards.classes, shards.labels.tolist()) == (["cat", "dog"], [1, 0, 1, 1])


def test_stored_index_gives_the_same_source_here_and_at_a_copy(small: bytes, tmp_path: Path) -> None:
    write_tar(
        tmp_path / "in" / "a.tar", [("a.png", small), ("caf\u00e9.png", small), ("b.png", small), ("b.cls", b"x")]
    )
    source = open_tars(tmp_path / "in")
    (tmp_path / "out" / "parts").mkdir(parents=True)
    about = {"digest": source.digest, "classes": source.classes}
    write_listing(tmp_path / "out", source)
    stored = read_listing(tmp_path / "out", about)
    again = open_source("webdataset", root=str(tmp_path / "in"), listing=stored)
    assert (again.digest, again.classes, len(again)) == (source.digest, ["x"], 3)
    assert (again[2].label, again[2].data, again.key(1)) == (0, small, source.key(1))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "a.tar").write_bytes((tmp_path / "in" / "a.tar").read_bytes())
    copy = open_source("webdataset", root=str(tmp_path / "copy"), listing=stored)
    with pytest.raises(SourceLost, match="changed after the build began"):
        copy[0]  # written after the listing
    write_listing(tmp_path / "out", source, compare_times=False)
    copy = open_source("webdataset", root=str(tmp_path / "copy"), listing=read_listing(tmp_path / "out", about))
    assert copy[0].data == small
    (tmp_path / "copy" / "a.tar").write_bytes(b"x")
    with pytest.raises(UserError, match="its tars are not those that this build began with"):
        open_source("webdataset", root=str(tmp_path / "copy"), listing=stored)
    file = next((tmp_path / "out" / "parts").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DamagedError, match="damaged; build into another directory"):
        read_listing(tmp_path / "out", about)


def test_a_number_among_class_names_is_refused(small: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", labelled(small, "txt", [b"dog", b"1", b"-1", b"cat"]))
    source = open_tars(tmp_path, label="txt")
    assert [source[i].label for i in (0, 2, 3)] == [1, -1, 0]
    with pytest.raises(ImageError, match="txt is the number 1, where other samples have class names"):
        source[1]
    assert open_tars(tmp_path, label="txt", classes=["cat", "dog"])[1].label == 1


def test_the_query_of_a_url_is_no_part_of_a_tars_name() -> None:
    signed = File("https://host/set/part-000.tar?X-Amz-Expires=600&X-Amz-Signature=a/b", 1, "")
    assert (tar_listing.tar_name(signed), tar_listing.tar_stem(signed)) == ("part-000.tar", "part-000")
    assert tar_listing.tar_name(File("folder/what?.tar", 1, "")) == "what?.tar"
