"""Images in a tree of folders: what is listed, the keys, and reading on disks that fail."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

from texturegen.errors import ImageError, SourceLost, UserError
from texturegen.sources import files
from texturegen.sources.files import is_image, list_sizes, make_key, read_image, require_unique, retry, walk


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
    assert list_sizes(tmp_path, ["a/1.png", "2.png"]) == [["a/1.png", 7], ["2.png", 5]]


@pytest.mark.parametrize(("code", "calls"), [(errno.ESTALE, 4), (errno.EIO, 4), (errno.ENOENT, 1), (errno.EACCES, 1)])
def test_only_errors_that_may_pass_are_retried(monkeypatch: pytest.MonkeyPatch, code: int, calls: int) -> None:
    monkeypatch.setattr(files, "RETRY_DELAYS", (0, 0, 0))
    failures = []

    def read() -> bytes:
        failures.append(OSError(code, os.strerror(code)))
        raise failures[-1]

    with pytest.raises(OSError, match=os.strerror(code)):
        retry(read)
    assert len(failures) == calls


def test_a_read_that_succeeds_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "RETRY_DELAYS", (0, 0, 0))
    results = iter([OSError(errno.ESTALE, "stale"), OSError(errno.ETIMEDOUT, "late"), b"data"])

    def read() -> bytes:
        result = next(results)
        if isinstance(result, OSError):
            raise result
        return result

    assert retry(read) == b"data"


def test_a_lost_image_is_told_from_a_lost_folder(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "a/1.png")
    assert read_image("key", root, "a/1.png", len) == (b"a/1.png", 7)
    with pytest.raises(ImageError, match=r"^key: a/2\.png cannot be read: No such file"):
        read_image("key", root, "a/2.png", len)
    shutil.rmtree(root)
    with pytest.raises(SourceLost, match=f"the folder {re.escape(str(root))} cannot be reached any more"):
        read_image("key", root, "a/1.png", len)
