"""The header parser against tarfile, and the comparison of a tar with what is expected in it."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from texturegen.storage.tar import (
    BLOCK,
    Header,
    end_of_tar,
    find_faults,
    hash_and_compare,
    make_header,
    padded,
    parse_header,
)

MEMBERS = {"a.png": b"1" * 700, "a.cls": b"3", "b/c.png": b"", "b/c.json": b"x" * 512}


def make_tar(members: dict[str, bytes], format_: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def places(data: bytes) -> dict[str, tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: (info.offset_data, info.size) for info in tar}


def compare(path: Path, members: dict[str, bytes]) -> tuple[str, bool]:
    sizes = np.array([len(data) for data in members.values()], np.int64)
    with open(path, "rb", buffering=0) as f:
        return hash_and_compare(f, np.array([name.encode() for name in members], "S100"), sizes)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("size", [0, 1, 512, 8**11 - 1])
def test_headers_of_every_format_are_parsed(format_: int, size: int) -> None:
    info = tarfile.TarInfo("n01/a.png")
    info.size = size
    assert parse_header(info.tobuf(format_)) == Header("n01/a.png", size, tarfile.REGTYPE)
    if format_ == tarfile.USTAR_FORMAT:
        assert make_header("n01/a.png", size) == info.tobuf(format_)


def test_a_long_name_and_a_large_size_are_parsed() -> None:
    info = tarfile.TarInfo("k" * 80 + "/" + "l" * 90)
    assert parse_header(info.tobuf(tarfile.USTAR_FORMAT)) == Header(info.name, 0, tarfile.REGTYPE)
    info.name, info.size = "a", 2**40
    assert parse_header(info.tobuf(tarfile.GNU_FORMAT)) == Header("a", 2**40, tarfile.REGTYPE)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_random_block_is_a_header_or_none(data: st.DataObject) -> None:
    block = bytearray(make_header("a/b.png", 77))
    for _ in range(data.draw(st.integers(1, 3))):
        patch, at = data.draw(st.binary(min_size=1, max_size=12)), data.draw(st.integers(0, BLOCK - 12))
        block[at : at + len(patch)] = patch
    if data.draw(st.booleans()):
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
    header = parse_header(bytes(block))
    assert header is None or (isinstance(header.name, str) and isinstance(header.size, int) and len(header.kind) == 1)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_the_size_of_a_tar_follows_from_its_members(count: int) -> None:
    members = dict(list(MEMBERS.items())[:count])
    length = sum(BLOCK + padded(len(data)) for data in members.values())
    assert len(make_tar(members)) == end_of_tar(length)


def test_an_expected_tar_is_equal(tmp_path: Path) -> None:
    for number, members in enumerate((MEMBERS, {})):
        path, data = tmp_path / str(number), make_tar(members)
        path.write_bytes(data)
        assert compare(path, members) == (hashlib.sha256(data).hexdigest(), True)
        with path.open("rb") as f:
            assert list(find_faults(f, len(data), places(data))) == []


CHANGES: dict[str, tuple[Callable[[bytes], bytes], str | None, str]] = {
    "name": (lambda d: d.replace(b"a.cls", b"a.clt"), "a.cls", "header"),
    "header gone": (lambda d: bytes(BLOCK) + d[BLOCK:], "a.png", "missing from the tar"),
    "end mark gone": (lambda d: d[:-10240] + b"x" * 10240 if len(d) > 10240 else d[:-1] + b"x", None, "followed by"),
    "cut": (lambda d: d[:1000], "a.png", "more than the file has"),
    "a member more": (
        lambda d: d[:4608] + make_tar({"../e": b"1"})[:1024] + d[5632:],
        "../e",
        "its name points outside",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_tar_differs_and_the_change_is_named(tmp_path: Path, name: str) -> None:
    change, member, fault = CHANGES[name]
    whole = make_tar(MEMBERS)
    data, path = change(whole), tmp_path / "x"
    assert data != whole
    path.write_bytes(data)
    assert not compare(path, MEMBERS)[1]
    with path.open("rb") as f:
        found = list(find_faults(f, len(data), places(whole)))
    assert any(member == other and fault in text for other, text in found), found
