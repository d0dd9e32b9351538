"""Ranges of bytes of local files and of remote ones (fsspec), behind the same interfaces. Nothing here writes.

Local files are read by pread, not mapped: if a mapped file gets shorter, SIGBUS ends the process, while a read that
comes back short is an error that names the file. pread costs some 2 us more per member, 3 to 5 % of decoding 32 px.
"""

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from texturegen.errors import DamagedError, MissingError, UserError

DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
DRIVERS |= {"http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub"}

RETRY_DELAYS = (0.2, 1.0, 5.0)  # seconds
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # as text or as a Path, which has one "/" where the URL has two

Result = TypeVar("Result")
Read = Callable[[int, int], bytes]  # (start, end) -> the bytes there; fewer at the end of the file


class Ranges(Protocol):
    """Files by number, read by ranges. Any number of threads may read."""

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` of file `number`; DamagedError if the file has fewer."""


class Directory(Protocol):
    """The files of a folder or URL."""

    def locate(self, name: str) -> str:
        """Return the path or URL of the file `name`."""

    def fetch(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """Return the bytes `start` to `end` of a file, or all; None if there is no such file.

        Raises UserError if the file cannot be read, a remote range not even after RETRY_DELAYS, and DamagedError if it
        ends before `end`.
        """

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Return the size of each file in bytes, None for one that is missing."""

    def exists(self, name: str) -> bool:
        """Return True if there is a file or folder of that name."""


def is_url(path: str) -> bool:
    return "://" in path


def local_path(path: str | Path) -> Path:
    """Return the path of a file or directory to work on; UserError for a URL, whose shards can only be read.

    A path "s3:/bucket" would be a new directory named "s3:" in the current one.
    """
    if _URL.match(str(path)):
        raise UserError(
            f"{path}: is a URL, from which shards are only read (`open_shards`, `texturegen info` and `preview`, "
            "training); give a directory on a disk, and copy the shards from or to the URL"
        )
    return Path(path)


def open_directory(directory: str | Path) -> "Local | Remote":
    """Return the `Directory` at a path or URL; MissingError if the URL's driver is not installed."""
    if isinstance(directory, str) and is_url(directory):
        return Remote(directory.rstrip("/"))
    return Local(Path(directory))


def open_reader(path: str) -> Read:
    """Return read(start, end) of a local file or URL; it raises OSError if the file cannot be read.

    A local file is opened for each range: a thousand tars do not use up the file handles.
    """
    if not is_url(path):
        return lambda start, end: _read_once(path, start, end)
    fs, inner = find_filesystem(path)
    whole = b""

    def read(start: int, end: int) -> bytes:
        nonlocal whole
        if whole:
            return whole[start:end]
        try:
            data = bytes(fs.cat_file(inner, start=start, end=end))
        except Exception as error:  # each driver raises its own
            raise OSError(f"{path} cannot be read: {reason_of(error)}") from error
        if len(data) > end - start:  # a web server that knows no ranges sends the whole file
            whole, data = data, data[start:end]
        return data

    return read


def find_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it; MissingError if its driver is not installed."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        protocol = url.split("://")[0].split("::")[-1]
        remedy = f"pip install {DRIVERS[protocol]}" if protocol in DRIVERS else "fsspec has no driver for it"
        raise MissingError(f"{url}: cannot read {protocol}:// URLs: {remedy} ({reason_of(error)})") from None


def retry(read: Callable[[], Result], may_pass: Callable[[Exception], bool]) -> Result:
    """Return read(), retrying after RETRY_DELAYS if it raises an exception that may pass."""
    for seconds in RETRY_DELAYS:
        try:
            return read()
        except Exception as error:
            if not may_pass(error):
                raise
            time.sleep(seconds)
    return read()


def reason_of(error: Exception) -> str:
    """Return in one line why a file could not be read."""
    if isinstance(error, FileNotFoundError) and not error.strerror:  # as fsspec raises it: only the path
        return f"there is no {error}"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


class Local:
    """A folder on a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def locate(self, name: str) -> str:
        return f"{self.path}/{name}"

    def fetch(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        path = self.path / name
        if not path.is_file():
            return None
        try:
            data = path.read_bytes() if end is None else _read_once(str(path), start or 0, end)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
        if end is not None and len(data) != end - (start or 0):
            raise _too_short(str(path), end)
        return data

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        return [path.stat().st_size if path.is_file() else None for path in (self.path / name for name in names)]

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()


class LocalFiles:
    """Local files of known sizes, each opened when it is first read, and at most `max_open` at once."""

    def __init__(self, files: list[str], sizes: list[int], max_open: int | None = None) -> None:
        self.files, self.sizes, self.max_open = files, sizes, max_open
        self._handles: list[_Handle | None] = [None] * len(files)
        self._opened: deque[int] = deque()
        self._opening = threading.Lock()

    def read(self, number: int, offset: int, size: int) -> bytes:
        handle = self._handles[number] or self._open(number)
        try:
            data = _pread(handle.descriptor, size, offset)
            # The system gives at most 2 GB at once.
            while len(data) < size and (more := _pread(handle.descriptor, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise UserError(f"{self.files[number]}: cannot be read ({reason_of(error)})") from None
        if len(data) != size:
            raise _too_short(self.files[number], offset + size)
        return data

    def _open(self, number: int) -> "_Handle":
        with self._opening:
            handle = self._handles[number]
            if handle is not None:
                return handle
            while len(self._opened) >= (self.max_open or _max_handles() // 4):
                # Dropped, not closed: another thread may be reading, and the last reference closes it.
                self._handles[self._opened.popleft()] = None
            try:
                handle = _Handle(self.files[number])
                found = os.fstat(handle.descriptor).st_size
            except OSError as error:
                raise UserError(f"{self.files[number]}: cannot be read ({reason_of(error)})") from None
            if found != self.sizes[number]:
                raise DamagedError(f"{self.files[number]}: {found} bytes where {self.sizes[number]} were written")
            self._handles[number] = handle
            self._opened.append(number)
            return handle

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalFiles, (self.files, self.sizes, self.max_open)  # each process opens its own handles


class Chunk:
    """One range of a file, in memory; `start` is its place in the file."""

    __slots__ = ("data", "start")

    def __init__(self, data: bytes, start: int) -> None:
        self.data, self.start = data, start

    def read(self, number: int, offset: int, size: int) -> bytes:
        offset -= self.start
        return self.data[offset : offset + size]


class Remote:
    """A directory behind a URL. No file stays open: every read is one request for a range of bytes.

    A simple web server knows no ranges and sends whole files: the last of them is kept in memory.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._whole = ("", b"")  # name and bytes of the last file that was sent as a whole
        self._connect()

    def locate(self, name: str) -> str:
        return f"{self.url}/{name}"

    def fetch(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        kept, content = self._whole
        if start is not None and end is not None and kept == name and end <= len(content):
            return content[start:end]
        try:
            data: bytes = retry(
                lambda: self._files().cat_file(f"{self._root}/{name}", start=start, end=end),
                # Whole files are read when a directory is opened, and say whether the URL is right; ranges for days.
                lambda error: start is not None and not isinstance(error, FileNotFoundError),
            )
        except FileNotFoundError:
            return None
        except Exception as error:  # each driver raises its own
            raise UserError(f"{self.locate(name)}: cannot be read ({reason_of(error)})") from None
        if start is not None and end is not None and len(data) > end - start:
            self._whole, data = (name, data), data[start:end]
        if start is not None and end is not None and len(data) != end - start:
            raise _too_short(self.locate(name), end)
        return data

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        try:
            listed = self._files().ls(self._root, detail=True)
            found = {about["name"].rsplit("/", 1)[-1]: about["size"] for about in listed}
        except Exception:  # some web servers list nothing
            found = {}
        return [found[name] if isinstance(found.get(name), int) else self._size(name) for name in names]

    def exists(self, name: str) -> bool:
        return bool(self._files().exists(f"{self._root}/{name}"))

    def _size(self, name: str) -> int | None:
        try:
            size = self._files().size(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise UserError(f"{self.locate(name)}: cannot be read ({reason_of(error)})") from None
        if not isinstance(size, int):
            raise UserError(f"{self.locate(name)}: the server does not tell its size; copy the directory to a disk")
        return size

    def _files(self) -> Any:
        if os.getpid() != self._process:  # the drivers' threads do not survive a fork
            self._connect()
        return self._filesystem

    def _connect(self) -> None:
        self._filesystem, root = find_filesystem(self.url)
        self._root, self._process = root.rstrip("/"), os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.url,)


class _Handle:
    """An open file, closed with the last reference to it."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit, `os` may be cleared already
        if hasattr(self, "descriptor"):
            close(self.descriptor)


def _read_once(path: str, start: int, end: int) -> bytes:
    handle = _Handle(path)  # a name of its own: it is closed with its last reference
    return _pread(handle.descriptor, end - start, start)


def _too_short(file: str, end: int) -> DamagedError:
    return DamagedError(f"{file}: ends before byte {end}, so it is truncated; copy it again")


def _max_handles() -> int:
    """Return how many files this process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if soft == resource.RLIM_INFINITY else max(min(soft, 4096), 64)


def _seek_and_read(descriptor: int, size: int, offset: int) -> bytes:
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


_SEEKING = threading.Lock()
_pread = getattr(os, "pread", _seek_and_read)  # Windows has no pread
