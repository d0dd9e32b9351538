"""Files that are there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from texturegen.storage.atomic import write_atomically, write_once


@pytest.mark.parametrize("links", [True, False])
def test_the_first_to_write_stays_on_file_systems_without_hard_links_too(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "recipe.json"
    assert write_once(path, "first")
    assert not write_once(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_of_a_link_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_once(tmp_path / "recipe.json", "first")
    assert not list(tmp_path.iterdir())


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_the_error_of_a_read_only_disk_names_the_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *given: object, **named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)  # Linux refuses it, also of a file that is not there
    with pytest.raises(OSError, match="Read-only file system") as caught:
        write_atomically(tmp_path / "file", "text")
    assert caught.value.filename == str(tmp_path / "file")


@pytest.mark.parametrize("name", ["missing/file", "folder"])
def test_an_error_names_the_file_that_was_asked_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        write_atomically(tmp_path / name, "text")
    assert caught.value.filename == str(tmp_path / name)
    assert ".tmp" not in str(caught.value)
