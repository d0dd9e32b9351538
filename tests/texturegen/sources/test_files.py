"""Images in a tree of folders: what is listed, the keys, and reading on disks that fail."""

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from texturegen.errors import ImageError, SourceLost, UserError
from texturegen.sources import files
from texturegen.sources.files import (
    is_image,
    make_key,
    make_listing,
    names_and_sizes,
    read_image,
    require_unique,
    retry,
    walk,
)


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_walk_lists_files_at_any_depth_without_hidden_ones(tmp_path: Path) -> None:
    fill(tmp_path, "top.png", "a/1.png", "a/b/c/2.txt", ".hidden", ".cache/3.png", "a/.4.png")
    assert sorted(walk(tmp_path)) == [("a/1.png", "file"), ("a/b/c/2.txt", "file"), ("top.png", "file")]
    assert sorted(walk(tmp_path / "a", "a/")) == [("a/1.png", "file"), ("a/b/c/2.txt", "file")]


def test_walk_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    root, away = fill(tmp_path / "root", "a/1.png"), fill(tmp_path / "away", "2.png")
    (root / "b").symlink_to(away)
    (root / "a" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "pipe.png")
    assert sorted(walk(root)) == [
        ("a/1.png", "file"),
        ("b/2.png", "file"),
        ("gone.png", "other"),
        ("pipe.png", "other"),
        ("self", "other"),
    ]


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        ("a/b.png", "file", True),
        ("a.JPEG", "file", True),
        ("a.png", "other", False),
        ("a.txt", "file", False),
        ("png", "file", False),
        ("a.png/b", "file", False),
    ],
)
def test_images_are_recognised_by_their_extension(path: str, kind: str, expected: bool) -> None:
    assert is_image(path, kind) is expected


def test_keys_are_readable_valid_and_unique() -> None:
    long = "x" * 120
    paths = ["a b/ü.png", "a_b/ü.png", "a/b.png", "a-b.png", "a/b.jpg", f"{long}1.png", f"{long}2.png", "\udce9.png"]
    keys = [make_key(path) for path in paths]
    assert len(set(keys)) == len(paths)
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,100}", key) for key in keys)
    assert make_key("a/b.png") == "a-b-88f7ec79"  # part of the contract: keys are stored in shards
    require_unique(paths)


def test_equal_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "make_key", lambda path: "same")
    with pytest.raises(UserError, match=r"a\.png and b\.png get the same key same; rename one of them"):
        require_unique(["a.png", "b.png"])


def test_sizes(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "2.png")
    listing = make_listing(tmp_path, ["a/1.png", "2.png"], [])
    assert names_and_sizes(listing) == [["a/1.png", 7], ["2.png", 5]]


def test_folders_may_be_nested_deeper_than_the_stack_of_python(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1100):  # by relative names: mkdir takes no path of this length at once on every system
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("x.png", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert list(walk(tmp_path)) == [("d/" * 1100 + "x.png", "file")]
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # pytest removes its folders by recursion


def test_a_file_that_changed_after_the_listing_is_a_failed_image(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "1.png", "2.png", "3.png", "4.png")
    listing = make_listing(root, ["1.png", "2.png", "3.png", "4.png"], [])
    assert read_image("key", root, listing, 0, len) == (b"1.png", 5)
    (root / "2.png").write_bytes(b"longer than before")
    with pytest.raises(ImageError, match=r"2\.png: had 5 bytes when the images were listed and has 18 now; restore it"):
        read_image("key", root, listing, 1, len)
    (root / "3.png").write_bytes(b"other")
    os.utime(root / "3.png", ns=(0, listing.listed_at + 1))
    with pytest.raises(ImageError, match=r"3\.png: was rewritten after the images were listed"):
        read_image("key", root, listing, 2, len)
    os.utime(root / "4.png", ns=(0, listing.listed_at - 10**12))  # a copy on another machine has another, earlier time
    assert read_image("key", root, listing, 3, len) == (b"4.png", 5)


@pytest.mark.parametrize(("code", "calls"), [(errno.ESTALE, 4), (errno.EIO, 4), (errno.ENOENT, 1), (errno.EACCES, 1)])
def test_only_errors_that_may_pass_are_retried(monkeypatch: pytest.MonkeyPatch, code: int, calls: int) -> None:
    monkeypatch.setattr("texturegen.storage.ranges.RETRY_DELAYS", (0, 0, 0))
    failures = []

    def read() -> bytes:
        failures.append(OSError(code, os.strerror(code)))
        raise failures[-1]

    with pytest.raises(OSError, match=os.strerror(code)):
        retry(read)
    assert len(failures) == calls


def test_a_read_that_succeeds_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("texturegen.storage.ranges.RETRY_DELAYS", (0, 0, 0))
    results = iter([OSError(errno.ESTALE, "stale"), OSError(errno.ETIMEDOUT, "late"), b"data"])

    def read() -> bytes:
        result = next(results)
        if isinstance(result, OSError):
            raise result
        return result

    assert retry(read) == b"data"


def test_a_lost_image_is_told_from_a_lost_folder(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "a/1.png", "a/2.png")
    listing = make_listing(root, ["a/1.png", "a/2.png"], [])
    (root / "a" / "2.png").unlink()
    assert read_image("key", root, listing, 0, len) == (b"a/1.png", 7)
    with pytest.raises(ImageError, match=r"^key: a/2\.png cannot be read: No such file"):
        read_image("key", root, listing, 1, len)
    shutil.rmtree(root)
    with pytest.raises(SourceLost, match=f"the folder {re.escape(str(root))} cannot be reached any more"):
        read_image("key", root, listing, 0, len)


def test_names_read_in_another_encoding_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In a Latin-1 locale, the same file has another str, and so would have another key, label and place in the order.
    key = make_key("caf\u00e9.png")
    (tmp_path / "cat.png").touch()
    (tmp_path / "caf\u00e9.png").touch()
    monkeypatch.setattr("os.fsencode", lambda name: name.encode("latin-1", "surrogateescape"))
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "iso8859-1")
    assert make_key("caf\u00e9.png") == key  # of a tar, whose names are always UTF-8
    assert list(make_listing(tmp_path, ["cat.png"], []).sizes) == [0]
    with pytest.raises(UserError, match="PYTHONUTF8=1"):
        make_listing(tmp_path, ["cat.png", "caf\u00e9.png"], [])
    with pytest.raises(UserError, match="is read as iso8859-1 here"):
        make_listing(tmp_path, ["cat.png"], ["caf\ufffd"])


def test_a_time_beyond_int64_is_listed_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat.png").touch()
    now = (tmp_path / "cat.png").stat()
    # As after `touch -d 2400-01-01`; not all file systems of a test machine can hold that.
    later = SimpleNamespace(st_size=0, st_mtime_ns=13_569_465_600 * 10**9)
    with monkeypatch.context() as patch:
        patch.setattr("os.stat", lambda path: later)
        listing = make_listing(tmp_path, ["cat.png"], [])
    assert listing.find_change(0, later) is None  # type: ignore[arg-type]
    assert listing.find_change(0, now) is None  # a copy with an earlier time
