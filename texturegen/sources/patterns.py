"""The files that a path, a pattern or a URL names. URLs (s3://, gs://, https:// ...) are read by fsspec."""

import glob
import itertools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from texturegen.errors import MissingError, UserError
from texturegen.storage.ranges import Read, find_filesystem, is_url, reason_of

MAX_FILES = 100_000
MAX_REQUESTS = 16  # to a remote store at once
_URL_WILDCARDS = r"[*\[]"


class File(NamedTuple):
    """A file; `stamp` changes when its content does (its time, or a store's own tag)."""

    path: str
    size: int
    stamp: str


def find_files(root: str, suffix: str | tuple[str, ...]) -> list[File]:
    """Return the files that `root` names.

    Parameters
    ----------
    root : a folder, a file, a URL of either, or a pattern. A pattern has braces ({000..003}, {a,b}), which keep their
        order, or the wildcards * ? [], which are sorted, or both. In a URL "?" starts the query and is not a wildcard.
    suffix : of the files of a folder, such as ".tar", or several; hidden files are skipped.

    Raises
    ------
    UserError : there are no such files, or one that braces name is missing or cannot be read.
    """
    try:
        return _find_remote(root, suffix) if is_url(root) else _find_local(root, suffix)
    except UserError:
        raise
    except Exception as error:  # each driver raises its own
        raise UserError(f"{root} cannot be read: {reason_of(error)}") from error


def has_changed(file: File, since: int) -> bool:
    """Return True if a local file has another size than `find_files` found, or was rewritten after the time `since`.

    The time is in ns since 1970. The files of a URL are not asked for: it would take a request for each read.
    """
    if is_url(file.path):
        return False
    try:
        found = os.stat(file.path)
    except OSError:  # reading it says why
        return False
    is_rewritten = since < found.st_mtime_ns and str(found.st_mtime_ns) != file.stamp
    return found.st_size != file.size or is_rewritten


def buffered(read: Read, size: int, chunk: int) -> Read:
    """Return `read` with a buffer: it fetches `chunk` bytes at a time and keeps the last, for reading front to back."""
    start, buffer = 0, b""

    def window(begin: int, end: int) -> bytes:
        nonlocal start, buffer
        end = min(end, size)
        if begin < start or end > start + len(buffer):
            start, buffer = begin, read(begin, min(size, max(end, begin + chunk))) if begin < end else b""
        return buffer[begin - start : end - start]

    return window


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with {a,b} and {000..003} stands for, in the order of a shell.

    Examples
    --------
    >>> list(expand_braces("part-{08..10}.tar"))
    ['part-08.tar', 'part-09.tar', 'part-10.tar']
    """
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
        raise UserError(f"{pattern}: {{{inside}}} is neither {{first..last}} nor {{a,b}}; write it as one of them")
    for choice in choices:
        yield from (f"{head}{choice}{rest}" for rest in expand_braces(tail))


def _expand(pattern: str) -> list[str]:
    names = list(itertools.islice(expand_braces(pattern), MAX_FILES + 1))
    if len(names) > MAX_FILES:
        raise UserError(f"{pattern} names more than {MAX_FILES} files; use a narrower pattern")
    if not names:
        raise UserError(f"{pattern} names no files; write the smaller number of a range first")
    return names


def _find_local(root: str, suffix: str | tuple[str, ...]) -> list[File]:
    if os.path.isdir(root):
        names = [name for name in os.listdir(root) if name.endswith(suffix) and not name.startswith(".")]
        paths = [os.path.join(root, name) for name in sorted(names)]
        # A link that leads nowhere is kept, and refused below: it stands for a file that is missing.
        paths = [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]
    elif os.path.exists(root):
        paths = [root]
    else:
        paths = []
        for name in _expand(root):
            paths += sorted(glob.glob(name)) if glob.has_magic(name) else [name]
    if not paths:
        raise MissingError(
            f"there are no {suffix if isinstance(suffix, str) else suffix[0]} files in {root}; check --root"
        )
    return [File(path, found.st_size, str(found.st_mtime_ns)) for path in paths for found in [_stat(path)]]


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _find_remote(root: str, suffix: str | tuple[str, ...]) -> list[File]:
    fs, _ = find_filesystem(root)
    names = _expand(root)
    suffixes = "|".join(map(re.escape, (suffix,) if isinstance(suffix, str) else suffix))
    visible = rf"(^|/)[^./][^/]*({suffixes})$"
    if names == [root] and not re.search(_URL_WILDCARDS, root):
        inner = fs._strip_protocol(root)
        if fs.isdir(inner):
            found = [about for about in fs.ls(inner, detail=True) if re.search(visible, about["name"])]
            return _describe_remote(fs, root, sorted(found, key=lambda about: about["name"]))
    inners: list[str] = []
    for name in names:
        inner = fs._strip_protocol(name)
        inners += sorted(fs.glob(inner)) if re.search(_URL_WILDCARDS, name) else [inner]
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        return _describe_remote(fs, root, list(pool.map(fs.info, inners)))


def _describe_remote(fs: Any, root: str, found: list[dict[str, Any]]) -> list[File]:
    files = []
    for about in found:
        path = fs.unstrip_protocol(about["name"])
        if about.get("type") != "file" or not isinstance(about.get("size"), int):
            raise UserError(f"{path} is not a file, or its server does not tell its size")
        stamp = [about.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")]
        files.append(File(path, about["size"], repr(stamp)))
    if not files:
        raise MissingError(f"there are no such files in {root}; check --root")
    return files
