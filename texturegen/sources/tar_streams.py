"""Compressed tars, read as streams behind the interface of ranges.

A compressed file has no random access: a byte is reached by decompressing everything before it. Reading front to
back is as fast as the decompressor; going back starts again at the beginning.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import IO, Any

from texturegen.errors import MissingError, UserError
from texturegen.storage.ranges import Read, find_filesystem, is_url, open_reader, reason_of

# First bytes of a file -> name of the compression in fsspec.
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
UNKNOWN_SIZE = 2**62  # bytes; larger than any tar
STEP = 2**22  # bytes decompressed at a time while skipping
KEPT = 2**24  # bytes kept behind the position: threads read neighbouring samples in any order


def find_compression(head: bytes) -> str:
    """Return the compression of a file by its first bytes, as fsspec names it; "" for none."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


@lru_cache(maxsize=4)  # per process: the next sample is usually the next in the stream
def open_stream(path: str, compression: str, stamp: str = "") -> Read:
    """Return read(start, end) of the decompressed bytes of a local file or URL; any number of threads may call it.

    Parameters
    ----------
    path : of the file.
    compression : "gzip", "bz2", "xz" or "zstd"; "" for a file that is read as it is.
    stamp : changes when the file does, so that a stream of its old content is not taken from the cache.

    Raises
    ------
    MissingError : the compression needs a package that is not installed.
    """
    if not compression:
        return open_reader(path)
    from fsspec.compression import compr  # type: ignore[import-untyped]

    if compression not in compr:
        raise MissingError(f"{path}: is compressed by {compression}, which needs a package: pip install zstandard")
    return _Stream(path, compr[compression]).read


class _Stream:
    def __init__(self, path: str, decompress: Callable[..., Any]) -> None:
        self._path, self._decompress = path, decompress
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._start, self._window = 0, bytearray()  # decompressed bytes, and where the first of them lies

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes `start` to `end`, fewer at the end of the stream; OSError if it cannot be decompressed."""
        with self._lock:
            try:
                if self._file is None or start < self._start:
                    self._reopen()
                assert self._file is not None
                while self._start + len(self._window) < end:
                    data = self._file.read(min(STEP, end - self._start - len(self._window)))
                    if not data:
                        break
                    self._window += data
                    excess = min(len(self._window) - KEPT, start - self._start)
                    if excess > 0:
                        del self._window[:excess]
                        self._start += excess
                return bytes(self._window[start - self._start : end - self._start])
            except (OSError, UserError):
                self._file = None
                raise
            except Exception as error:  # zlib, lzma and zstandard raise their own
                self._file = None
                raise OSError(f"{self._path} cannot be decompressed: {reason_of(error)}") from error

    def _reopen(self) -> None:
        if is_url(self._path):
            fs, inner = find_filesystem(self._path)
            raw = fs.open(inner, "rb")
        else:
            raw = open(self._path, "rb")  # noqa: SIM115
        if self._file is not None:
            self._file.close()
        self._file = self._decompress(raw, mode="rb")
        self._start, self._window = 0, bytearray()
