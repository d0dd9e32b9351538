"""Files by path or URL: which there are, and ranges of their bytes. URLs (s3://, gs://, https:// ...) by fsspec."""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from texturegen.errors import UserError

MAX_FILES = 100_000
WILDCARDS = r"[*\[]"  # of a URL
THREADS = 16  # requests to a remote place that wait at once

Read = Callable[[int, int], bytes]  # (start, end) -> the bytes there; fewer at the end of the file


class File(NamedTuple):
    """A file and what tells whether it is still the same."""

    path: str
    size: int
    stamp: str


def is_url(path: str) -> bool:
    return "://" in path


def find_files(root: str, suffix: str) -> list[File]:
    """Return the files that `root` means: a folder's that end in `suffix`, one file, or those of a pattern.

    A pattern has braces ({000..003}, {a,b}; the order is theirs) or the wildcards * ? [] (sorted), or both; in a URL ?
    is no wildcard, but starts the query. UserError when there are none, or one that braces name is not there.
    """
    try:
        return _find_remote(root, suffix) if is_url(root) else _find_local(root, suffix)
    except UserError:
        raise
    except Exception as error:  # every kind of store raises errors of its own
        raise UserError(f"{root} cannot be read: {_reason(error)}") from error


def open_reader(path: str) -> Read:
    """Return read(start, end) -> the bytes there, fewer at the file's end; it raises OSError."""
    if not is_url(path):
        return lambda start, end: _read_local(path, start, end)
    fs, inner = _filesystem(path)

    def read(start: int, end: int) -> bytes:
        try:
            return bytes(fs.cat_file(inner, start=start, end=end))
        except Exception as error:
            raise OSError(f"{path} cannot be read: {_reason(error)}") from error

    return read


def buffered(read: Read, size: int, chunk: int) -> Read:
    """`read` that fetches `chunk` bytes at a time and keeps the last, for a walk from front to back."""
    start, buffer = 0, b""

    def window(begin: int, end: int) -> bytes:
        nonlocal start, buffer
        end = min(end, size)
        if begin < start or end > start + len(buffer):
            start, buffer = begin, read(begin, min(size, max(end, begin + chunk))) if begin < end else b""
        return buffer[begin - start : end - start]

    return window


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield what a pattern with {a,b} and {000..003} means, lazily, the rightmost fastest, as a shell does."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    head, inside, tail = pattern[: match.start()], match[1], pattern[match.end() :]
    numbers = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", inside)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = max(len(text) if text.startswith("0") else 0 for text in numbers.groups())
        choices: Any = (f"{n:0{width}d}" for n in range(first, last + 1))
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise UserError(f"{pattern}: {{{inside}}} is neither {{first..last}} nor {{a,b}}")
    for choice in choices:
        yield from (f"{head}{choice}{rest}" for rest in expand_braces(tail))


def _expand(pattern: str) -> list[str]:
    names = list(itertools.islice(expand_braces(pattern), MAX_FILES + 1))
    if len(names) > MAX_FILES:
        raise UserError(f"{pattern} means more than {MAX_FILES} files; give fewer at a time")
    if not names:
        raise UserError(f"{pattern} means no files; the first number of a range is to be the smaller")
    return names


def _find_local(root: str, suffix: str) -> list[File]:
    if os.path.isdir(root):
        names = [entry.name for entry in os.scandir(root) if entry.name.endswith(suffix) and entry.is_file()]
        paths = [os.path.join(root, name) for name in sorted(names) if not name.startswith(".")]
    elif os.path.exists(root):
        paths = [root]
    else:
        paths = []
        for name in _expand(root):
            paths += sorted(glob.glob(name)) if glob.has_magic(name) else [name]
    if not paths:
        raise UserError(f"there are no {suffix} files in {root}")
    return [File(path, found.st_size, str(found.st_mtime_ns)) for path in paths for found in [_stat(path)]]


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _find_remote(root: str, suffix: str) -> list[File]:
    fs, _ = _filesystem(root)
    names = _expand(root)
    visible = rf"(^|/)[^./][^/]*{re.escape(suffix)}$"
    if names == [root] and not re.search(WILDCARDS, root):
        inner = fs._strip_protocol(root)
        if fs.isdir(inner):
            found = [about for about in fs.ls(inner, detail=True) if re.search(visible, about["name"])]
            return _describe_remote(fs, root, sorted(found, key=lambda about: about["name"]))
    inners: list[str] = []
    for name in names:
        inner = fs._strip_protocol(name)
        inners += sorted(fs.glob(inner)) if re.search(WILDCARDS, name) else [inner]
    with ThreadPoolExecutor(THREADS) as pool:
        return _describe_remote(fs, root, list(pool.map(fs.info, inners)))


def _describe_remote(fs: Any, root: str, found: list[dict[str, Any]]) -> list[File]:
    files = []
    for about in found:
        path = fs.unstrip_protocol(about["name"])
        if about.get("type") != "file" or not isinstance(about.get("size"), int):
            raise UserError(f"{path} is no file, or its server does not tell its size")
        stamp = [about.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")]
        files.append(File(path, about["size"], repr(stamp)))
    if not files:
        raise UserError(f"there are no such files in {root}")
    return files


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    return url_to_fs(url)


def _read_local(path: str, start: int, end: int) -> bytes:
    # Opened for each range: a thousand tars do not use up the file handles, and no map ends in SIGBUS if one shrinks.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        return os.pread(file, end - start, start)
    finally:
        os.close(file)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no {error.filename or error}"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
