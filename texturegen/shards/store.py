"""Access to the bytes of samples in local or remote shards, one by one or in order."""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import Any, Protocol

import numpy as np

from texturegen.errors import MissingError
from texturegen.storage.ranges import Chunk, LocalFiles, Ranges, Remote

BLOCK = 4 << 20  # bytes per request when samples are read in order
READ_AHEAD = 3  # concurrent requests


class Store(Protocol):
    """Thread-safe access to the bytes of all samples of a directory."""

    def sample(self, index: int) -> Ranges:
        """Return a reader for the members of sample `index`, by their offsets in its shard."""

    def samples(self) -> Iterator[Ranges]:
        """Yield the reader of every sample in order."""


class LocalStore:
    """Local shards, which are read on access to a member."""

    def __init__(self, files: list[str], sizes: list[int], samples: int) -> None:
        self.files, self.count = LocalFiles(files, sizes), samples

    def sample(self, index: int) -> LocalFiles:
        return self.files

    def samples(self) -> Iterator[LocalFiles]:
        return repeat(self.files, self.count)


class RemoteStore:
    """Remote shards: one request per sample, or one per BLOCK of samples when they are read in order.

    Parameters
    ----------
    names, sizes : file name and size in bytes of each shard.
    shard_ids : (N,), index of the shard of each sample.
    ranges : (N, 2), start and end of the sample's byte range.
    """

    def __init__(
        self, remote: Remote, names: list[str], sizes: list[int], shard_ids: np.ndarray, ranges: np.ndarray
    ) -> None:
        self.remote, self.names, self.sizes, self.shard_ids, self.ranges = remote, names, sizes, shard_ids, ranges
        self._cache: BlockCache | None = None

    def enable_block_cache(self, max_bytes: int) -> None:
        """Fetch single samples in blocks from now on, through an LRU cache of at most `max_bytes`."""
        self._cache = BlockCache(self.remote, max_bytes)

    def sample(self, index: int) -> Chunk:
        shard, (start, end) = int(self.shard_ids[index]), self.ranges[index].tolist()
        if self._cache is not None:
            return self._cache.read(self.names[shard], start, end, self.sizes[shard])
        return Chunk(_fetch(self.remote, self.names[shard], start, end), start)

    def samples(self) -> Iterator[Chunk]:
        pool = ThreadPoolExecutor(READ_AHEAD)
        ahead: deque[tuple[list[tuple[int, int]], Future[bytes]]] = deque()
        try:
            for shard, run in _runs(self.shard_ids, self.ranges):
                start, end = run[0][0], run[-1][1]
                ahead.append((run, pool.submit(_fetch, self.remote, self.names[shard], start, end)))
                if len(ahead) == READ_AHEAD:
                    yield from _divide(*ahead.popleft())
            while ahead:
                yield from _divide(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


class BlockCache:
    """Thread-safe LRU cache of blocks of remote files. Threads that need the same block share one request."""

    def __init__(self, remote: Remote, max_bytes: int) -> None:
        self.remote, self.max_blocks = remote, max(max_bytes // BLOCK, 2)
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, start: int, end: int, size: int) -> Chunk:
        """Return the bytes `start` to `end` of a file of `size` bytes; raises the same exceptions as `Remote.fetch`."""
        first = start // BLOCK
        data = b"".join(self._block(name, i, size) for i in range(first, -(-end // BLOCK)))
        return Chunk(data[start - first * BLOCK : end - first * BLOCK], start)

    def _block(self, name: str, i: int, size: int) -> bytes:
        key = (name, i)
        with self._lock:
            block = self._blocks.pop(key, None)
            is_missing = block is None
            if block is None:
                block = Future()
            self._blocks[key] = block  # last in the order of eviction
            while len(self._blocks) > self.max_blocks:
                self._blocks.popitem(last=False)
        if is_missing:
            try:
                block.set_result(_fetch(self.remote, name, i * BLOCK, min((i + 1) * BLOCK, size)))
            except BaseException as error:
                with self._lock:
                    self._blocks.pop(key, None)  # so that the next read retries
                block.set_exception(error)
        return block.result()

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockCache, (self.remote, self.max_blocks * BLOCK)


def _fetch(remote: Remote, name: str, start: int, end: int) -> bytes:
    data = remote.fetch(name, start, end)
    if data is None:
        raise MissingError(f"{remote.locate(name)}: missing")
    return data


def _runs(shard_ids: np.ndarray, ranges: np.ndarray) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield (shard, ranges) for runs of consecutive samples in one shard that span at most BLOCK bytes."""
    run: list[tuple[int, int]] = []
    current = -1
    for at in range(0, len(shard_ids), 4096):  # a million ranges as Python ints would take 200 MB
        batch = slice(at, at + 4096)
        for shard, (start, end) in zip(shard_ids[batch].tolist(), ranges[batch].tolist(), strict=True):
            if run and (shard != current or start < run[-1][1] or end - run[0][0] > BLOCK):
                yield current, run
                run = []
            current = shard
            run.append((start, end))
    if run:
        yield current, run


def _divide(run: list[tuple[int, int]], block: Future[bytes]) -> Iterator[Chunk]:
    """Yield the bytes of each sample of a run, as copies, so that a sample in use does not keep its block in memory."""
    data, first = block.result(), run[0][0]
    for start, end in run:
        yield Chunk(data[start - first : end - first], start)
