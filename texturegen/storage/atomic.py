"""Files that appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from texturegen.errors import DamagedError

# What os.link raises on file systems without hard links (exFAT, mounted object stores).
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


def write_atomically(path: Path, content: bytes | str | Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name, fsync it and rename it to `path`.

    A device or a pipe (/dev/stdout) is written to, because a rename would put a file in its place.

    Parameters
    ----------
    path : Path
        The file to write; its directory must exist.
    content : bytes, str or callable
        The bytes, a text (UTF-8), or a function that writes to the binary file it is called with.

    Raises
    ------
    OSError
        For instance a full disk. The previous file at `path` is unchanged and the temporary file is removed.
    """
    if path.is_dir():  # also of "" and "/", which have no name to make a temporary one of
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with open(path, "wb") as f:
            _write(content, f)
        return
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as f:
            _write(content, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # ENOSPC carries no file name
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):  # of a read-only disk even a missing file; the error of the write matters
            temporary.unlink()


def _write(content: bytes | str | Callable[[IO[bytes]], object], f: IO[bytes]) -> None:
    if callable(content):
        content(f)
    else:
        f.write(content.encode() if isinstance(content, str) else content)


def write_once(path: Path, content: str) -> bool:
    """Write a file atomically unless it exists; return False if another process wrote it first."""
    temporary = temporary_name(path)
    try:
        write_atomically(temporary, content)
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            # Of two processes at this very moment, the last one stays; neither file is ever in part.
            if path.exists():
                return False
            os.replace(temporary, path)
        sync_directory(path.parent)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def sync_directory(path: Path) -> None:
    """Make the renames in a directory survive a power cut, on systems that can fsync directories."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def temporary_name(path: Path) -> Path:
    """Return PATH.<random>.tmp, so that two processes writing the same file use different temporary files."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with sorted keys atomically: equal contents give equal bytes."""
    write_atomically(path, as_json(content))


def as_json(content: Any) -> str:
    """Return the text that `write_json` writes."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    DamagedError
        The file does not hold a JSON object.
    OSError
        The file cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: damaged; it does not hold a JSON object")
    return content
