"""Choose a cache directory for Numba's compiled code if its defaults are not writable.

Numba stores compiled code beside the source or in the user's cache directory, and raises an error if it can write to
neither, as for a package installed by root in a container whose user has no home directory.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def ensure_cache_directory(sources: Path) -> None:
    """Set Numba's cache to a private temporary directory if neither default location is writable.

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
    if any(_can_write(Path(path)) for path in (chosen, sources / "__pycache__", home) if path):
        return
    from numba import config  # type: ignore[import-untyped]

    directory = str(_private_directory())
    # Numba has already read the environment of this process, but worker processes will read it.
    os.environ["NUMBA_CACHE_DIR"] = directory
    config.CACHE_DIR = directory  # type: ignore[attr-defined]


def _can_write(directory: Path) -> bool:
    """Return True if a file can be created in the directory or, if it is missing, in its nearest existing parent."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        # Permission bits are unreliable: root ignores them, and a file system may be mounted read-only.
        with tempfile.TemporaryFile(dir=directory):
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
