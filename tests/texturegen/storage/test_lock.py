"""Locks on files and directories: who is kept out, and what remains."""

import os
import shutil
from pathlib import Path

import pytest

from texturegen.errors import BusyError
from texturegen.storage.lock import LOCK, DirectoryLock, acquire


def test_the_holder_is_named(tmp_path: Path) -> None:
    with acquire(tmp_path / "lock", activity="training"):
        with pytest.raises(BusyError, match=rf"{tmp_path}: process {os.getpid()} on .* is training there"):
            acquire(tmp_path / "lock", activity="sorting")
        with pytest.raises(BusyError, match=r"elsewhere: process"):
            acquire(tmp_path / "lock", shared=True, location=Path("elsewhere"))
    acquire(tmp_path / "lock").close()


def test_a_lock_needs_no_space_on_the_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # stands for a full disk: the same write fails
    try:
        with acquire(tmp_path / "lock"), pytest.raises(BusyError, match="another process is working there"):
            acquire(tmp_path / "lock")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_shared_locks_exclude_only_exclusive_ones(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path, shared=True):
        with DirectoryLock(tmp_path, shared=True), pytest.raises(BusyError), DirectoryLock(tmp_path):
            pass
        with pytest.raises(BusyError), DirectoryLock(tmp_path):
            pass
    assert (tmp_path / LOCK).exists()  # others may still hold it
    with DirectoryLock(tmp_path), pytest.raises(BusyError), DirectoryLock(tmp_path, shared=True):
        pass
    assert not (tmp_path / LOCK).exists()


def test_directories_created_for_the_lock_and_left_empty_are_removed(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert not (tmp_path / "a").exists()
    with DirectoryLock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    with DirectoryLock(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").exists()  # it was there before


def test_a_lock_on_a_file_that_its_holder_removes_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between opening the file and locking it, the previous holder removes it: that lock would keep nobody out.
    fcntl = pytest.importorskip("fcntl")
    flock, calls = fcntl.flock, []

    def remove_first(f: object, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / "lock").unlink()
        flock(f, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with acquire(tmp_path / "lock"):
        assert len(calls) == 2
        with pytest.raises(BusyError):
            acquire(tmp_path / "lock")


def test_a_directory_that_its_holder_removes_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def remove_first(path: Path, *arguments: object) -> object:
        calls.append(path)
        if len(calls) == 1:
            shutil.rmtree(path.parent)
        return acquire(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("texturegen.storage.lock.acquire", remove_first)
    with DirectoryLock(tmp_path / "a"):
        assert (tmp_path / "a" / LOCK).exists()
    assert len(calls) == 2


def test_a_missing_directory_is_not_created_on_request(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), DirectoryLock(tmp_path / "a", create=False):
        pass
    assert not (tmp_path / "a").exists()
