"""The source `webdataset`: samples compared with webdataset's own reader; hostile and damaged tars; remote tars."""

import contextlib
import gzip
import io
import itertools
import json
import os
import pickle
import re
import resource
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from texturegen.builds import Recipe, build
from texturegen.errors import ImageError, SourceLost, UserError
from texturegen.shards import open_shards
from texturegen.sources import open_source
from texturegen.sources import webdataset as module
from texturegen.sources.patterns import buffered, expand_braces
from texturegen.sources.tar_index import MAX_EXTENDED, index_tar, split_name, walk_tar
from texturegen.sources.webdataset import WebDataset
from texturegen.storage.image import decode_image, encode_png

Encode = Callable[..., bytes]
Members = list[tuple[str, bytes]]


@pytest.fixture
def small(photo: np.ndarray, encode: Encode) -> bytes:
    return encode("RGB", "PNG")


def write_tar(path: Path, members: Members, format_: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_tar(members, format_))
    return path


def make_tar(members: Members, format_: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def make_special(name: str, kind: bytes, target: str = "") -> bytes:
    """A header alone: a link, a device, or whatever `kind` is."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info.tobuf(tarfile.USTAR_FORMAT)


def open_tars(root: Path | str, **options: Any) -> WebDataset:
    source = open_source("webdataset", root=root, **options)
    assert isinstance(source, WebDataset)
    return source


def header_claiming(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("claim")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_sample_is_read_as_webdataset_reads_it(tmp_path: Path, encode: Encode, format_: int) -> None:
    wds = pytest.importorskip("webdataset")
    long = "k" * 60 + "/" + "l" * 39  # 100 characters, which with an extension do not fit a header's name field
    keys = ["n01/a", "b-2", long, "c_3", "d"]
    images = {"png": encode("RGB", "PNG"), "jpg": encode("RGB", "JPEG"), "JPEG": encode("L", "JPEG")}
    contents: list[Members] = []
    for number, part in enumerate((keys[:3], keys[3:])):
        members: Members = []
        for i, key in enumerate(part):
            ext = ["png", "jpg", "JPEG"][(i + number) % 3]
            members += [(f"{key}.{ext}", images[ext]), (f"{key}.seg.npy", b"\0" * (700 * i)), (f"{key}.Json", b"{}")]
            members += [(f"{key}.cls", b"%d" % i)] if i else []
        contents.append([("README", b"no sample"), *members])
        write_tar(tmp_path / f"{number}.tar", contents[-1], format_)
    source = open_tars(tmp_path)
    theirs = list(wds.WebDataset([str(tmp_path / f"{i}.tar") for i in range(2)], shardshuffle=False))
    assert [source.key(i) for i in range(len(source))] == [sample["__key__"] for sample in theirs] == keys
    for i in reversed(range(len(source))):
        item, sample = source[i], {k: v for k, v in theirs[i].items() if not k.startswith("__")}
        image = next(sample.pop(ext) for ext in ("png", "jpg", "jpeg") if ext in sample)
        assert item.label == int(sample.pop("cls", b"-1"))
        assert item.members == sample
        assert set(item.members) == {"seg.npy", "json"}
        np.testing.assert_array_equal(item.image, decode_image(image))
        assert (item.data, item.ext) == (image, "png" if image == images["png"] else "jpg")
        assert (item.key, item.meta) == (keys[i], {"tar": f"{i // 3}.tar"})
    assert source.ignored == ["0.tar: README", "1.tar: README"]
    assert (source.split, source.classes) == (None, [])


def test_the_tars_of_gnu_tar_are_read(tmp_path: Path, small: bytes) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.png", "a.cls", "deep/b.png", ".DS_Store"):
        (tmp_path / "in" / name).write_bytes(b"7\n" if name.endswith("cls") else small)
    command = ["tar", "--sort=name", "-cf", tmp_path / "x.tar", "-C", tmp_path / "in", "."]
    subprocess.run(command, check=True)
    source = open_tars(tmp_path / "x.tar")
    assert [source[i].key for i in range(2)] == ["a", "deep/b"]
    assert [source[i].label for i in range(2)] == [7, -1]
    assert source.ignored == ["x.tar: ./.DS_Store"]


def test_the_image_is_the_known_extension_or_the_chosen_one(tmp_path: Path, encode: Encode) -> None:
    png, jpg = encode("RGB", "PNG"), encode("RGB", "JPEG")
    write_tar(tmp_path / "a.tar", [("a.left.png", jpg), ("a.JPEG", jpg), ("a.png", png), ("b.left.PNG", png)])
    source = open_tars(tmp_path)
    assert source[0].data == png
    assert source[0].members == {"left.png": jpg, "jpeg": jpg}
    with pytest.raises(
        ImageError, match=r"^b: a\.tar: has no member png or jpg.* among left\.png with --source-option image=EXT"
    ):
        source[1]
    left = open_tars(tmp_path, image="left.png")
    assert (left[0].data, left[1].data) == (jpg, png)
    assert left[0].members == {"jpeg": jpg, "other.png": png}
    assert left.digest != source.digest
    for bad in ("", "../x", "cls", "a b"):
        with pytest.raises(UserError, match="cannot be the extension of an image"):
            open_tars(tmp_path, image=bad)


def test_an_image_beside_its_mask_has_to_be_chosen(tmp_path: Path, encode: Encode) -> None:
    png, jpg = encode("L", "PNG"), encode("RGB", "JPEG")
    write_tar(tmp_path / "a.tar", [("a.jpg", jpg), ("a.png", png), ("a.cls", b"0"), ("b.jpg", jpg), ("b.webp", png)])
    write_tar(tmp_path / "b.tar", [("c.jpg", jpg), ("c.png", png), ("c.other.png", png)])
    with pytest.raises(ImageError, match=r"a: a\.tar: has several images; choose png or jpg with --source-option"):
        open_tars(tmp_path)[0]
    source = open_tars(tmp_path, image="jpg")
    assert [(source[i].data, source[i].members) for i in (0, 1)] == [
        (jpg, {"other.png": png}),
        (jpg, {"other.webp": png}),
    ]
    with pytest.raises(ImageError, match=r"members png and other\.png, which get the same name in shards; rename one"):
        source[2]
    build(Recipe("webdataset", source_options={"image": "jpg"}), tmp_path / "out", str(tmp_path / "a.tar"), workers=0)
    shards = open_shards(tmp_path / "out")
    assert (shards[0].image_bytes, shards[0].members) == (jpg, {"other.png": png})


def test_keys_that_shards_do_not_allow_can_be_renamed(tmp_path: Path, small: bytes) -> None:
    keys = ["train.v1/0001", "my photo 1", "caf\u00e9", "k" * 90, "plain/key"]
    write_tar(tmp_path / "a.tar", [(f"{key}.png", small) for key in keys], tarfile.GNU_FORMAT)
    with pytest.raises(ImageError, match=r"key train\.v1/0001 is not allowed .* with --source-option rename_keys=true"):
        open_tars(tmp_path)[0]
    options = {"rename_keys": True}
    result = build(Recipe("webdataset", source_options=options), tmp_path / "out", str(tmp_path), workers=0)
    assert result.counts["failed"] == 0
    found = open_shards(tmp_path / "out").keys
    assert found[:2] == ["train_v1-0001-a2321dd9", "my_photo_1-ffcc9094"]
    assert found[4] == "plain/key"
    assert len({*found}) == 5
    assert open_tars(tmp_path, **options).digest != open_tars(tmp_path).digest
    with pytest.raises(UserError, match="rename_keys is 'yes'; it must be true or false"):
        open_tars(tmp_path, rename_keys="yes")


def test_a_tar_that_is_rewritten_during_a_build_ends_it(tmp_path: Path, small: bytes) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.png", small)])
    source = open_tars(tmp_path)
    os.utime(tar, ns=(0, time.time_ns() + 10**9))
    with pytest.raises(SourceLost, match=r"a\.tar changed after the build began; restore it and run the same command"):
        source[0]


def test_labels_are_numbers_within_the_class_names(tmp_path: Path, small: bytes) -> None:
    texts = [b"1", b" 0\n", b"2", b"dog", b"9" * 5000, b"", b"-2", b"1.0"]
    members = [(f"s{i}.{ext}", data) for i, text in enumerate(texts) for ext, data in (("png", small), ("cls", text))]
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "names.txt").write_text("cat\nbig dog\n\n")
    source = open_tars(tmp_path, classes=str(tmp_path / "names.txt"))
    assert source.classes == ["cat", "big dog"]
    assert [source[0].label, source[1].label] == [1, 0]
    with pytest.raises(ImageError, match=r"s2: .* cls is 2, but there are 2 class names"):
        source[2]
    for index in range(3, 8):
        message = r"cls (holds '.*', which is (not|neither) a class number|has 5000 bytes, too many)"
        with pytest.raises(ImageError, match=message) as caught:
            source[index]
        assert len(str(caught.value)) < 180
    assert source.digest != open_tars(tmp_path).digest
    (tmp_path / "names.txt").write_text("crane\ncat\ncrane\n")  # as among the names of ImageNet
    assert open_tars(tmp_path, classes=str(tmp_path / "names.txt"))[2].label == 2
    write_tar(tmp_path / "b.tar", [("b.png", small), ("b.cls", b"crane"), ("c.png", small), ("c.cls", b"cat")])
    named = open_tars(tmp_path / "b.tar", classes=str(tmp_path / "names.txt"))
    assert named[1].label == 1
    with pytest.raises(ImageError, match="'crane', which is the name of several classes in --classes"):
        named[0]
    for content, message in (("a\n\nb", "line 2: is empty"), ("", "are empty")):
        (tmp_path / "names.txt").write_text(content)
        with pytest.raises(UserError, match=message):
            open_tars(tmp_path, classes=str(tmp_path / "names.txt"))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd.png",
        "../up.png",
        "a/../../b.png",
        "a//b.png",
        "a b.png",
        "caf\u00e9.png",
        "x\x1b[31m.png",
        "new\nline.png",
        "v1.0/a.png",
        "k" * 101 + ".png",
        "\udcff.png",
    ],
)
def test_an_unsafe_key_fails_only_its_sample_and_is_escaped(tmp_path: Path, small: bytes, name: str) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", small), (name, small), ("z.png", small)], tarfile.GNU_FORMAT)
    source = open_tars(tmp_path)
    with pytest.raises(ImageError, match="is not allowed in shards") as caught:
        source[1]
    for text in (str(caught.value), source.key(1)):
        assert text.isascii()
        assert text.isprintable()
    assert caught.value.key == source.key(1)
    assert not module.KEY.fullmatch(source.key(1))
    assert (source[0].key, source[2].key) == ("a", "z")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"?"])
def test_links_and_devices_are_not_followed(tmp_path: Path, small: bytes, kind: bytes) -> None:
    secret = write_tar(tmp_path / "other" / "a.png", [("x", small)])
    data = make_special("a.png", kind, str(secret)) + make_tar([("a.cls", b"1"), ("b.png", small)])
    (tmp_path / "a.tar").write_bytes(data)
    source = open_tars(tmp_path)
    with pytest.raises(ImageError, match=r"^a: a\.tar: the member png is a link, a device or a pipe"):
        source[0]
    assert source[1].data == small


def test_repeated_keys_are_named(tmp_path: Path, small: bytes) -> None:
    path = write_tar(tmp_path / "in" / "a.tar", [("a.png", small), ("b.png", small), ("a.cls", b"1")])
    with pytest.raises(UserError, match=r"a\.tar: a\.cls: the key a appears twice"):
        open_tars(path)
    write_tar(path, [("a.png", small), ("./a.PNG", small)])
    with pytest.raises(UserError, match=r"a\.tar: \./a\.PNG appears twice"):
        open_tars(path)
    write_tar(path, [("b.png", small), ("a.png", small)])
    write_tar(tmp_path / "in" / "c.tar", [("d.png", small), ("a.png", small)])
    with pytest.raises(UserError, match=r"the key a is in .*a\.tar and .*c\.tar; keys must be unique"):
        open_tars(tmp_path / "in")
    assert len(open_tars(path)) == 2


@pytest.mark.parametrize("name", ["a.texture0.png", "a.Texture12.jpg", "a.texture3"])
def test_tars_with_texture_members_are_refused(tmp_path: Path, small: bytes, name: str) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", small), (name, small)])
    with pytest.raises(UserError, match=rf"a\.tar: {name} has a name that is reserved for the textures"):
        open_tars(tmp_path)


@pytest.mark.parametrize("cut", [1, 200, 511, 512, 600, 1024 + 511, 1024 + 512, 2048, 4000])
def test_a_truncated_tar_is_named(tmp_path: Path, cut: int) -> None:
    data = make_tar([("a.png", b"1" * 700), ("b.png", b"2" * 1500)])[: 512 + 1024 + 512 + 1536]
    (tmp_path / "a.tar").write_bytes(data[:cut])
    with pytest.raises(UserError, match=r"a\.tar: .*(truncated|not a tar|more than the tar has left)") as caught:
        open_tars(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_tars_are_named(tmp_path: Path, small: bytes) -> None:
    good = make_tar([("a.png", small)])
    damaged = bytearray(make_tar([("a.png", b""), ("b.png", b"")]))
    damaged[512 + 5] ^= 1
    cases = [
        (b"", "truncated"),
        (b"hello " * 200, "is not a tar"),
        (bytes(damaged), r"damaged header after a\.png"),
        (gzip.compress(b"hello " * 200), "is not a tar"),
        (gzip.compress(good)[:-30], "cannot be decompressed|truncated"),
        (make_tar([]), "no samples"),
        (make_tar([("README", b"x")]), "no samples"),
        (header_claiming(tarfile.REGTYPE, -5), "claim claims -5 bytes"),
        (header_claiming(tarfile.GNUTYPE_SPARSE, 0), "is a sparse file"),
    ]
    for data, message in cases:
        (tmp_path / "a.tar").write_bytes(data)
        with pytest.raises(UserError, match=message):
            open_tars(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("size", [10 * 2**30, MAX_EXTENDED + 1, -1])
def test_a_giant_extended_header_is_not_read(kind: bytes, size: int) -> None:
    data = make_tar([("a.png", b"1")])[:1024] + header_claiming(kind, size)

    def read(start: int, end: int) -> bytes:
        assert end - start <= MAX_EXTENDED
        return data[start:end]

    with pytest.raises(UserError, match=rf"x: the extended header after a\.png claims {size} bytes"):
        index_tar("x", read, 2**40)


def test_a_ten_gigabyte_extended_header_takes_no_memory(tmp_path: Path, small: bytes) -> None:
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(header_claiming(tarfile.XHDTYPE, 10 * 2**30))
        file.truncate(11 * 2**30)  # a sparse file: the bytes exist and take no space
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="claims 10737418240 bytes"):
        open_tars(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_chain_of_extended_headers_does_not_recurse(tmp_path: Path, small: bytes) -> None:
    chain = make_special("x", tarfile.XHDTYPE) * 5000
    (tmp_path / "a.tar").write_bytes(chain + make_tar([("a.png", small)]))
    assert open_tars(tmp_path)[0].data == small


@pytest.mark.parametrize(
    "record", [b"x", b"9999999 path=a\n", b"5 a=b", b"0 path=a\n", b"-3 a=b\n", b"13 size=-999\n", b"12 path a.b\n"]
)
def test_a_damaged_pax_record_is_named(record: bytes) -> None:
    info = tarfile.TarInfo("p")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    data = info.tobuf() + record.ljust(512, b"\0") + make_tar([("a.png", b"1")])
    with pytest.raises(UserError, match="x: the extended header after the start is damaged"):
        index_tar("x", lambda a, b: data[a:b], len(data))


def test_an_oversized_sample_fails_alone(tmp_path: Path, small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo("a.png")
    info.size = 3 * 2**30
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(3 * 2**30, os.SEEK_CUR)
        file.write(make_tar([("b.png", small)]))
    source = open_tars(tmp_path)
    with pytest.raises(ImageError, match="exceeds the limit of 512 MB"):
        source[0]
    assert source[1].data == small
    monkeypatch.setattr("texturegen.storage.image.MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"b: a\.tar: png: the image has more than the limit"):
        source[1]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_headers_never_crash_or_hang_the_walk(data: st.DataObject) -> None:
    tar = bytearray(make_tar([("a.png", b"1" * 100), ("k" * 120 + ".png", b"2")], tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 4 * 512))
        patch = data.draw(st.binary(min_size=1, max_size=12))
        tar[at : at + len(patch)] = patch
    for block in range(0, 2048, 512):  # repair the checksums, or nearly every change would stop there
        tar[block + 148 : block + 156] = b"%06o\0 " % (
            sum(tar[block : block + 148]) + 256 + sum(tar[block + 156 : block + 512])
        )
    content = bytes(tar)
    members = []
    with contextlib.suppress(UserError):
        for member in itertools.islice(walk_tar("x", lambda a, b: content[a:b], len(content)), 100):
            members.append(member)
    assert len(members) < 20
    assert all(0 <= m.offset <= len(content) for m in members)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.png", ("a", "png")),
        ("./././a.PNG", ("a", "png")),
        ("a/b.left.png", ("a/b", "left.png")),
        ("a.b/c.png", ("a.b/c", "png")),
        ("a", ("", "")),
        ("a.d/b", ("", "")),
        (".png", ("", "")),
        ("a/.png", ("", "")),
        ("../a.png", ("../a", "png")),
    ],
)
def test_names_split_at_the_first_dot(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


def test_the_digest_is_of_the_content_and_a_source_can_be_pickled(tmp_path: Path, small: bytes) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", small)])
    digest = open_tars(tmp_path).digest
    assert open_tars(tmp_path).digest == digest
    write_tar(tmp_path / "a.tar", [("b.png", small)])
    source = open_tars(tmp_path)
    assert source.key(0) == "b"
    assert source.digest != digest
    os.utime(tmp_path / "a.tar", ns=(2, 2))
    assert open_tars(tmp_path).digest == source.digest  # another time stamp, the same tar
    assert pickle.loads(pickle.dumps(source))[0].data == small


def test_a_truncated_or_removed_tar_ends_the_source(tmp_path: Path, small: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.png", small), ("b.png", small)])
    source = open_tars(tmp_path)
    assert source[0].data == small
    os.truncate(path, len(small) + 2000)
    with pytest.raises(SourceLost, match=r"a\.tar changed after the build began"):
        source[1]
    path.unlink()
    with pytest.raises(SourceLost, match=r"a\.tar can no longer be read: No such file"):
        source[0]


def test_root_is_a_folder_a_tar_a_pattern_or_a_url(tmp_path: Path, small: bytes) -> None:
    for i in range(3):
        write_tar(tmp_path / "set" / f"s-{i:03d}.tar", [(f"k{i}.png", small)])
    (tmp_path / "set" / "notes.txt").write_text("x")
    (tmp_path / "set" / ".s-000.tar").write_text("x")
    folder = tmp_path / "set"

    def keys(root: Path | str) -> list[str]:
        source = open_tars(root)
        return [source.key(i) for i in range(len(source))]

    assert keys(folder) == keys(str(folder)) == ["k0", "k1", "k2"]
    assert keys(folder / "s-001.tar") == ["k1"]
    assert keys(folder / "s-{001..002}.tar") == ["k1", "k2"]
    assert keys(folder / "s-{002,000}.tar") == ["k2", "k0"]
    assert keys(folder / "s-*[01].tar") == ["k0", "k1"]
    assert keys(f"file://{folder}/s-{{000..001}}.tar") == ["k0", "k1"]
    assert open_tars(folder).digest == open_tars(f"file://{folder}").digest
    os.rename(folder / "s-000.tar", folder / "s-{1..2}.tar")
    assert keys(folder / "s-{1..2}.tar") == ["k0"]


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("{tmp}/none.tar", r"none\.tar cannot be read: No such file"),
        ("{tmp}/{0..3}.tar", r"/0\.tar cannot be read: No such file"),
        ("{tmp}/*.tar", "there are no .tar files in"),
        ("{tmp}", "there are no .tar files in"),
        ("{tmp}/{0..999999999}{0..999999999}.tar", "more than 100000 files"),
        ("{tmp}/{3..0}.tar", "names no files"),
        ("{tmp}/{x}.tar", r"\{x\} is neither"),
        ("nope://bucket/x.tar", "nope://bucket/x.tar: cannot read nope:// URLs"),
        ("memory://nothing/x.tar", "cannot be read: there is no"),
        ("memory://nothing/*.tar", "there are no such files"),
    ],
)
def test_a_root_without_tars_raises_one_line(tmp_path: Path, root: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_tars(root.replace("{tmp}", str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_tar_that_is_a_link_to_nowhere_is_missed(tmp_path: Path, small: bytes) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", small)])
    (tmp_path / "1.tar").symlink_to("gone.tar")
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(UserError, match=r"/1\.tar cannot be read: No such file"):
        open_tars(tmp_path)


def test_a_url_keeps_its_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_files(root: str, suffix: str) -> list:
        raise UserError(f"asked for {root}")

    monkeypatch.setattr("texturegen.sources.tar_listing.find_files", find_files)
    with pytest.raises(UserError, match=r"^asked for s3://bucket//x/\{000\.\.003\}\.tar$"):
        open_source("webdataset", root="s3://bucket//x/{000..003}.tar")


def test_remote_tars_are_read_by_ranges(small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = pytest.importorskip("fsspec").filesystem("memory")
    for i in range(4):
        members = [(f"k{i}{j}.{ext}", data) for j in "ab" for ext, data in (("png", small), ("cls", b"%d" % i))]
        fs.pipe(f"/wds-test/{i:03d}.tar", write_tar(tmp_path / f"{i:03d}.tar", members).read_bytes())
    ranges: list[tuple[int, int]] = []
    whole = type(fs).cat_file

    def cat_file(self: object, path: str, start: int, end: int) -> bytes:
        ranges.append((start, end))
        return whole(self, path, start=start, end=end)

    monkeypatch.setattr(type(fs), "cat_file", cat_file)
    source = open_tars("memory://wds-test/{000..003}.tar")
    assert [source.key(i) for i in range(8)] == [f"k{i}{j}" for i in range(4) for j in "ab"]
    ranges.clear()
    item = source[5]
    assert (item.label, item.data, len(ranges)) == (2, small, 1)
    assert ranges[0][1] - ranges[0][0] < len(small) + 2048
    assert source.digest == open_tars("memory://wds-test").digest == open_tars("memory://wds-test/*.tar").digest
    assert source.digest == open_tars(tmp_path).digest
    assert open_tars("memory://wds-test/002.tar").key(0) == "k2a"
    fs.rm("/wds-test", recursive=True)
    monkeypatch.setattr("texturegen.storage.ranges.RETRY_DELAYS", (0.01, 0.01))
    with pytest.raises(SourceLost, match=r"002\.tar can no longer be read: memory://.*there is no"):
        source[5]


def test_remote_indexing_reads_large_chunks(tmp_path: Path) -> None:
    data = make_tar([(f"k{i}.png", b"1" * 5000) for i in range(100)])
    asked = []

    def read(start: int, end: int) -> bytes:
        asked.append(end - start)
        return data[start:end]

    index = index_tar("x", buffered(read, len(data), 100_000), len(data))
    assert len(index.keys) == 100
    assert len(asked) <= 7
    assert max(asked) <= 100_000


def test_braces_expand_as_in_a_shell() -> None:
    assert list(expand_braces("a{08..11}b{x,y}")) == [f"a{n}b{c}" for n in ("08", "09", "10", "11") for c in "xy"]
    assert list(expand_braces("{9..11}")) == ["9", "10", "11"]
    assert next(expand_braces("{0..999999999}{0..999999999}")) == "00"
    assert list(expand_braces("plain.tar")) == ["plain.tar"]


def test_a_build_adds_textures_and_passes_other_members_through(tmp_path: Path, photo: np.ndarray) -> None:
    png = encode_png(photo[:48, :48])
    members = [(f"in/k{i}.{e}", d) for i in range(5) for e, d in (("png", png), ("json", b'{"i": 1}'), ("cls", b"3"))]
    write_tar(tmp_path / "in" / "a.tar", [*members[:9], ("../bad.png", png)])
    write_tar(tmp_path / "in" / "b.tar", members[9:])
    result = build(Recipe("webdataset", shard_size=4), tmp_path / "out", str(tmp_path / "in"), workers=1)
    shards = open_shards(tmp_path / "out")
    assert shards.keys == [f"in/k{i}" for i in range(5)]
    assert shards.labels.tolist() == [3] * 5
    assert shards[4].image_bytes == png
    assert shards.textures_per_image == 1
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        file = tar.extractfile("in/k1.json")
        assert file is not None
        assert json.loads(file.read()) == {"i": 1}
    assert len(result.failures) == 1
    row = next(row for row in shards.manifest.to_pylist() if row["status"] == "failed")
    assert row["key"] == "'../bad'"
    assert "is not allowed in shards" in row["error"]
    assert re.fullmatch(r"[ -~]+", row["error"])
