"""Files that are there whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

# A file system without hard links (exFAT, mounts of object stores) says one of these.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


def write_atomically(path: Path, content: bytes | str | Callable[[IO[bytes]], object]) -> None:
    """Write bytes, text, or whatever `content(file)` writes, under a temporary name; fsync; rename to `path`.

    OSError (a full disk, say) leaves what was at `path` before, and no temporary file.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as f:
            if callable(content):
                content(f)
            else:
                f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_once(path: Path, content: str) -> bool:
    """As `write_atomically`, but False, and nothing written, where another process had been quicker."""
    temporary = temporary_name(path)
    try:
        write_atomically(temporary, content)
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with path.open("x") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
        sync_directory(path.parent)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def sync_directory(path: Path) -> None:
    """Make what was renamed in a directory last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def temporary_name(path: Path) -> Path:
    """PATH.<random>.tmp: two processes that write the same file at once do not write into each other's."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with sorted keys, so that equal contents are equal bytes."""
    write_atomically(path, as_json(content))


def as_json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
