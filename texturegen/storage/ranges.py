"""The bytes of shards: maps of local files, and ranges of remote ones by fsspec. Both only ever read."""

import mmap
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from texturegen.errors import UserError

BLOCK = 4 << 20  # bytes that iteration over a remote directory asks for at once
AHEAD = 3  # blocks on their way at once
DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
DRIVERS |= {"http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub"}


class Maps:
    """Local shards, each mapped when it is first read.

    A map keeps a file handle, so there are only so many at once. One that has to go is not closed but forgotten:
    another thread may be reading from it, and the last reference closes it.
    """

    def __init__(self, files: list[str], sizes: list[int], at_most: int | None = None) -> None:
        self.files, self.sizes, self.at_most = files, sizes, at_most
        self._maps: list[Any] = [None] * len(files)
        self._opened: deque[int] = deque()
        self._opening = threading.Lock()

    def read(self, number: int, offset: int, size: int) -> bytes:
        data = self._maps[number]
        if data is None:
            data = self._open(number)
        return data[offset : offset + size]

    def _open(self, number: int) -> Any:
        with self._opening:
            data = self._maps[number]
            if data is not None:
                return data
            while len(self._opened) >= (self.at_most or _handles() // 4):
                self._maps[self._opened.popleft()] = None
            data = self._map(self.files[number], self.sizes[number])
            self._maps[number] = data
            self._opened.append(number)
            return data

    @staticmethod
    def _map(file: str, size: int) -> Any:
        try:
            with open(file, "rb") as f:
                if os.fstat(f.fileno()).st_size != size:
                    raise UserError(f"{file}: {os.fstat(f.fileno()).st_size} bytes where {size} were written")
                return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Maps, (self.files, self.sizes, self.at_most)  # a map does not travel; each process makes its own


class Chunk:
    """The bytes of one sample, `start` being the place of the first in the shard."""

    __slots__ = ("data", "start")

    def __init__(self, data: bytes, start: int) -> None:
        self.data, self.start = data, start

    def read(self, number: int, offset: int, size: int) -> bytes:
        offset -= self.start
        return self.data[offset : offset + size]


class Remote:
    """A directory behind a URL. No file stays open: every read is one request for a range of bytes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connect()

    def fetch(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """The bytes `start` to `end` of the file `name`, or all; None when there is no such file.

        Raises UserError for everything else that goes wrong, the range being short included.
        """
        try:
            data: bytes = self._files().cat_file(f"{self._root}/{name}", start=start, end=end)
        except FileNotFoundError:
            return None
        except Exception as error:  # each driver raises its own
            raise UserError(f"{self.url}/{name}: cannot be read ({_reason(error)})") from None
        if start is not None and end is not None and len(data) != end - start:
            raise UserError(f"{self.url}/{name}: ends at byte {start + len(data)}, the manifest goes to {end}")
        return data

    def sample(self, name: str, start: int, end: int) -> Chunk:
        data = self.fetch(name, start, end)
        if data is None:
            raise UserError(f"{self.url}/{name}: missing")
        return Chunk(data, start)

    def samples(self, names: list[str], numbers: np.ndarray, ranges: np.ndarray) -> Iterator[Chunk]:
        """The bytes of every sample in order, fetched in blocks some of which are under way ahead of the consumer."""
        pool = ThreadPoolExecutor(AHEAD)
        ahead: deque[tuple[list[tuple[int, int]], Future[Chunk]]] = deque()
        try:
            for number, places in _blocks(numbers, ranges):
                start, end = places[0][0], places[-1][1]
                ahead.append((places, pool.submit(self.sample, names[number], start, end)))
                if len(ahead) == AHEAD:
                    yield from _parts(*ahead.popleft())
            while ahead:
                yield from _parts(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def sizes(self, names: list[str]) -> list[int | None]:
        """Bytes of each file; None where it is missing."""
        try:
            found = {
                about["name"].rsplit("/", 1)[-1]: about["size"] for about in self._files().ls(self._root, detail=True)
            }
        except Exception:  # some web servers list nothing
            found = {}
        return [found[name] if isinstance(found.get(name), int) else self._size(name) for name in names]

    def exists(self, name: str) -> bool:
        return bool(self._files().exists(f"{self._root}/{name}"))

    def _size(self, name: str) -> int | None:
        try:
            return int(self._files().size(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise UserError(f"{self.url}/{name}: cannot be read ({_reason(error)})") from None

    def _files(self) -> Any:
        if os.getpid() != self._process:  # the drivers' own threads do not live on in a forked process
            self._connect()
        return self._filesystem

    def _connect(self) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        try:
            self._filesystem, root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            protocol = self.url.split("://")[0].split("::")[-1]
            hint = f"pip install {DRIVERS[protocol]}" if protocol in DRIVERS else "no driver of fsspec reads it"
            raise UserError(f"{self.url}: {protocol}:// cannot be read here: {hint} ({_reason(error)})") from None
        self._root, self._process = root.rstrip("/"), os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.url,)


class Blocks:
    """A remote directory read in blocks; those used last are kept, for places that are near each other in time.

    Any number of threads may read; a block that several want is fetched once.
    """

    def __init__(self, remote: Remote, at_most: int) -> None:
        self.remote, self.at_most = remote, max(at_most // BLOCK, 2)
        self._kept: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def sample(self, name: str, start: int, end: int, size: int) -> Chunk:
        """The bytes `start` to `end` of a file of `size` bytes. Raises what `Remote.fetch` raises."""
        first = start // BLOCK
        data = b"".join(self._block(name, number, size) for number in range(first, -(-end // BLOCK)))
        return Chunk(data[start - first * BLOCK : end - first * BLOCK], start)

    def _block(self, name: str, number: int, size: int) -> bytes:
        key = (name, number)
        with self._lock:
            block = self._kept.pop(key, None)
            missing = block is None
            if block is None:
                block = Future()
            self._kept[key] = block  # at the end: used last
            while len(self._kept) > self.at_most:
                self._kept.popitem(last=False)
        if missing:
            try:
                block.set_result(self.remote.sample(name, number * BLOCK, min((number + 1) * BLOCK, size)).data)
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)  # to be tried again
                block.set_exception(error)
        return block.result()

    def __reduce__(self) -> tuple[Any, ...]:
        return Blocks, (self.remote, self.at_most * BLOCK)


def _blocks(numbers: np.ndarray, ranges: np.ndarray) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Runs of samples that follow each other in one shard and have BLOCK bytes at most: its number, their ranges."""
    places: list[tuple[int, int]] = []
    shard = -1
    for at in range(0, len(numbers), 4096):  # a million ranges as Python numbers would take 200 MB
        for number, (start, end) in zip(numbers[at : at + 4096].tolist(), ranges[at : at + 4096].tolist(), strict=True):
            if places and (number != shard or start < places[-1][1] or end - places[0][0] > BLOCK):
                yield shard, places
                places = []
            shard = number
            places.append((start, end))
    if places:
        yield shard, places


def _parts(places: list[tuple[int, int]], block: Future[Chunk]) -> Iterator[Chunk]:
    whole = block.result()
    for start, end in places:  # copies: a sample that is kept does not keep its block
        yield Chunk(whole.read(0, start, end - start), start)


def _handles() -> int:
    """Files this process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if soft == resource.RLIM_INFINITY else max(min(soft, 4096), 64)


def _reason(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
