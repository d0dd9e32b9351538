"""Choose a cache directory for Numba's compiled code if its defaults are not writable, or full.

Numba stores compiled code in NUMBA_CACHE_DIR, beside the source or in the user's cache directory: the first in which it
can create an empty file. It raises an error if there is none, as for a package installed by root in a container whose
user has no home directory, and if the code then does not fit, as in a home directory whose quota is used up.
"""

import os
import stat
import tempfile
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path

ROOM = 4 << 20  # bytes; the compiled code of all methods has 2 to 3 MB


def ensure_cache_directory(sources: Path) -> None:
    """Set Numba's cache to a private temporary directory if no default location is writable, or the first one is full.

    Call this before the first function is compiled. Processes started later inherit the setting.

    Parameters
    ----------
    sources : Path
        A directory that holds modules with compiled functions.

    Raises
    ------
    OSError
        No temporary directory is writable either.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(path) for path in (chosen, sources / "__pycache__", home) if path]
    place = next((path for path in places if _can_write(path)), None)
    # Worker processes inherit the choice, and do not all write ROOM bytes at once.
    if place is not None and (parent_process() is not None or _can_write(place, ROOM)):
        return
    from numba import config  # type: ignore[import-untyped]

    directory = str(_private_directory())
    # Numba has already read the environment of this process, but worker processes will read it.
    os.environ["NUMBA_CACHE_DIR"] = directory
    config.CACHE_DIR = directory  # type: ignore[attr-defined]


def _can_write(directory: Path, size: int = 0) -> bool:
    """Return True if a file of `size` bytes fits in the directory or, if missing, in its nearest existing parent."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        # Permission bits are unreliable: root ignores them, and a file system may be mounted read-only. Its free space
        # says nothing of a user's quota, which a network file system may report only when the bytes are sent.
        with tempfile.TemporaryFile(dir=directory) as f:
            f.write(os.urandom(size))  # zeros may be compressed to nothing
            f.flush()
            if size:
                os.fsync(f.fileno())
            return True
    except OSError:
        return False


def _private_directory() -> Path:
    """Return a directory that only this user can write to, because cached code is executed."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    directory = Path(tempfile.gettempdir()) / f"texturegen-{user}"
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not stat.S_IMODE(found.st_mode) & 0o077
    return directory if is_private or not hasattr(os, "getuid") else Path(tempfile.mkdtemp(prefix="texturegen-"))
