"""The bytes of samples, from local shards or remote ones, one by one or in order."""

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
READ_AHEAD = 3  # requests under way at once


class Store(Protocol):
    """The bytes of all samples of a directory. Any number of threads may read."""

    def sample(self, index: int) -> Ranges:
        """Return what reads the members of sample `index`, by their places in its shard."""

    def samples(self) -> Iterator[Ranges]:
        """Yield the same for every sample in order."""


class LocalStore:
    """Local shards: nothing is read before a member is asked for."""

    def __init__(self, files: list[str], sizes: list[int], samples: int) -> None:
        self.files, self.count = LocalFiles(files, sizes), samples

    def sample(self, index: int) -> LocalFiles:
        return self.files

    def samples(self) -> Iterator[LocalFiles]:
        return repeat(self.files, self.count)


class RemoteStore:
    """Remote shards: a sample is one request for its range; in order, many samples are one request.

    Parameters
    ----------
    names, sizes : of the shards.
    numbers : (N,), the shard of each sample.
    ranges : (N, 2), its first byte and its end.
    """

    def __init__(
        self, remote: Remote, names: list[str], sizes: list[int], numbers: np.ndarray, ranges: np.ndarray
    ) -> None:
        self.remote, self.names, self.sizes, self.numbers, self.ranges = remote, names, sizes, numbers, ranges
        self._cache: BlockCache | None = None

    def enable_block_cache(self, max_bytes: int) -> None:
        """Fetch single samples in blocks from now on, and keep up to `max_bytes` of the blocks used last."""
        self._cache = BlockCache(self.remote, max_bytes)

    def sample(self, index: int) -> Chunk:
        number, (start, end) = int(self.numbers[index]), self.ranges[index].tolist()
        if self._cache is not None:
            return self._cache.read(self.names[number], start, end, self.sizes[number])
        return Chunk(_fetch(self.remote, self.names[number], start, end), start)

    def samples(self) -> Iterator[Chunk]:
        pool = ThreadPoolExecutor(READ_AHEAD)
        ahead: deque[tuple[list[tuple[int, int]], Future[bytes]]] = deque()
        try:
            for number, places in _runs(self.numbers, self.ranges):
                start, end = places[0][0], places[-1][1]
                ahead.append((places, pool.submit(_fetch, self.remote, self.names[number], start, end)))
                if len(ahead) == READ_AHEAD:
                    yield from _parts(*ahead.popleft())
            while ahead:
                yield from _parts(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


class BlockCache:
    """Blocks of remote files, the ones used last kept, for samples that lie close together and are read soon after
    each other. A block that several threads want is fetched once.
    """

    def __init__(self, remote: Remote, max_bytes: int) -> None:
        self.remote, self.max_blocks = remote, max(max_bytes // BLOCK, 2)
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, start: int, end: int, size: int) -> Chunk:
        """Return the bytes `start` to `end` of a file of `size` bytes. Raises what `Remote.fetch` raises."""
        first = start // BLOCK
        data = b"".join(self._block(name, number, size) for number in range(first, -(-end // BLOCK)))
        return Chunk(data[start - first * BLOCK : end - first * BLOCK], start)

    def _block(self, name: str, number: int, size: int) -> bytes:
        key = (name, number)
        with self._lock:
            block = self._blocks.pop(key, None)
            is_missing = block is None
            if block is None:
                block = Future()
            self._blocks[key] = block  # at the end: used last
            while len(self._blocks) > self.max_blocks:
                self._blocks.popitem(last=False)
        if is_missing:
            try:
                block.set_result(_fetch(self.remote, name, number * BLOCK, min((number + 1) * BLOCK, size)))
            except BaseException as error:
                with self._lock:
                    self._blocks.pop(key, None)  # so that the next read tries again
                block.set_exception(error)
        return block.result()

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockCache, (self.remote, self.max_blocks * BLOCK)


def _fetch(remote: Remote, name: str, start: int, end: int) -> bytes:
    data = remote.fetch(name, start, end)
    if data is None:
        raise MissingError(f"{remote.locate(name)}: missing")
    return data


def _runs(numbers: np.ndarray, ranges: np.ndarray) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield (shard, ranges) of samples that follow each other in one shard and span at most BLOCK bytes."""
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


def _parts(places: list[tuple[int, int]], block: Future[bytes]) -> Iterator[Chunk]:
    data, first = block.result(), places[0][0]
    for start, end in places:  # copies: a sample that is kept does not keep its block
        yield Chunk(data[start - first : end - first], start)
