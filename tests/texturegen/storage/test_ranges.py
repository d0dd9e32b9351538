"""Ranges of local and remote files through the same interfaces, with the same errors."""

import http.server
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.storage import ranges
from texturegen.storage.ranges import Chunk, Directory, Local, LocalFiles, Remote, open_directory, open_reader

DATA = bytes(range(100))


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder or URL with the file "a" of 100 bytes and the folder "parts"."""
    if request.param == "local":
        (tmp_path / "a").write_bytes(DATA)
        (tmp_path / "parts").mkdir()
        yield str(tmp_path)
        return
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/ranges/a", DATA)
    memory.pipe_file("/ranges/parts/x", b"")
    yield "memory://ranges"
    memory.rm("/ranges", recursive=True)


def test_a_directory_finds_and_reads_its_files(place: str) -> None:
    directory: Directory = open_directory(place)
    assert isinstance(directory, Remote if "://" in place else Local)
    assert directory.locate("a") == f"{place}/a"
    assert directory.fetch("a") == DATA
    assert directory.fetch("a", 10, 20) == DATA[10:20]
    assert directory.fetch("b") is None
    assert directory.fetch("b", 0, 1) is None
    assert directory.sizes(["a", "b"]) == [100, None]
    assert directory.exists("parts")
    assert not directory.exists("b")
    with pytest.raises(DamagedError, match=rf"{place}/a: ends before byte 120"):
        directory.fetch("a", 90, 120)


def test_a_reader_returns_fewer_bytes_at_the_end_and_raises_oserror(place: str) -> None:
    read = open_reader(f"{place}/a")
    assert read(5, 9) == DATA[5:9]
    assert read(90, 120) == DATA[90:]
    with pytest.raises(OSError, match="b"):
        open_reader(f"{place}/b")(0, 1)


def test_a_remote_directory_survives_pickling_and_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe_file("/ranges/a", DATA)
    directory = pickle.loads(pickle.dumps(Remote("memory://ranges")))
    before = directory._files()
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    assert directory.fetch("a") == DATA
    assert directory._process == process + 1
    assert before is not None
    fsspec.filesystem("memory").rm("/ranges", recursive=True)


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    paths = [tmp_path / name for name in "abc"]
    for number, path in enumerate(paths):
        path.write_bytes(DATA[number:])
    return LocalFiles([str(path) for path in paths], [100, 99, 98])


def test_local_files_are_read_by_number(files: LocalFiles) -> None:
    assert [files.read(number, 3, 4) for number in range(3)] == [DATA[number + 3 :][:4] for number in range(3)]
    assert files.read(0, 0, 100) == DATA
    assert files.read(0, 100, 0) == b""
    again = pickle.loads(pickle.dumps(files))
    assert again.read(2, 0, 98) == DATA[2:]


def test_local_files_name_what_is_wrong(files: LocalFiles, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=rf"{tmp_path}/a: ends before byte 101"):
        files.read(0, 90, 11)
    (tmp_path / "b").unlink()
    with pytest.raises(UserError, match=rf"{tmp_path}/b: cannot be read \(No such file"):
        files.read(1, 0, 1)
    (tmp_path / "c").write_bytes(b"")
    with pytest.raises(DamagedError, match=rf"{tmp_path}/c: 0 bytes where 98 were written"):
        files.read(2, 0, 1)


def test_a_read_that_comes_in_parts_is_completed(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_pread", lambda descriptor, size, offset: os.pread(descriptor, min(size, 7), offset))
    assert files.read(0, 1, 50) == DATA[1:51]
    with pytest.raises(DamagedError, match="ends before byte 110"):
        files.read(0, 50, 60)


def test_reading_works_without_pread(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_pread", ranges._seek_and_read)
    assert files.read(0, 40, 50) == DATA[40:90]
    assert files.read(0, 1, 3) == DATA[1:4]


def test_a_chunk_is_read_by_places_in_its_file() -> None:
    assert Chunk(DATA[10:50], 10).read(3, 20, 5) == DATA[20:25]


@pytest.mark.parametrize(
    ("url", "remedy"),
    [("s3://bucket/x", "pip install s3fs"), ("nothing://bucket/x", "fsspec has no driver for it")],
)
def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch, url: str, remedy: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(MissingError, match=rf"{url}: cannot read .*{remedy}") as caught:
        open_directory(url)
    assert "\n" not in str(caught.value)


class _NoRanges(http.server.SimpleHTTPRequestHandler):
    """A simple web server: it ignores the header Range and sends whole files."""

    sent: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.sent.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_a_web_server_without_ranges_sends_each_file_once(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http:// by aiohttp")
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(DATA if name == "a" else DATA[::-1])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_NoRanges, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        directory, read = open_directory(url), open_reader(f"{url}/a")
        for start, end in ((10, 20), (0, 5), (90, 100)):
            assert directory.fetch("a", start, end) == read(start, end) == DATA[start:end]
        assert _NoRanges.sent == ["/a", "/a"], "once for the directory and once for the reader"
        assert directory.fetch("b", 1, 3) == DATA[::-1][1:3]
        assert directory.fetch("b") == DATA[::-1]
        with pytest.raises(DamagedError, match=r"/b: ends before byte 120, so it is truncated"):
            directory.fetch("b", 0, 120)
        assert directory.fetch("c", 0, 1) is None
        assert pickle.loads(pickle.dumps(directory)).fetch("a", 10, 20) == DATA[10:20]
        server.shutdown()


@pytest.mark.parametrize("failures", [2, 3])
def test_a_remote_range_is_requested_again_after_a_failure(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("texturegen.storage.ranges.RETRY_DELAYS", (0, 0))
    remote = Remote("memory://ranges")
    calls = []

    def read(path: str, start: int | None, end: int | None) -> bytes:
        calls.append(path)
        if len(calls) <= failures:
            raise RuntimeError("connection reset")
        return DATA[start:end]

    monkeypatch.setattr(remote._files(), "cat_file", read)
    if failures == 2:
        assert remote.fetch("a", 3, 9) == DATA[3:9]
    else:
        with pytest.raises(UserError, match=r"^memory://ranges/a: cannot be read \(connection reset\)$"):
            remote.fetch("a", 3, 9)
        calls.clear()
        with pytest.raises(UserError):
            remote.fetch("a")  # a wrong URL is not tried again
        assert len(calls) == 1


def test_a_file_that_is_open_at_exit_is_closed_without_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(DATA)
    handle = ranges._Handle(str(tmp_path / "a"))
    descriptor = handle.descriptor
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(ranges, "os", None)  # the interpreter clears modules before the last objects
    del handle
    assert unraisable == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
