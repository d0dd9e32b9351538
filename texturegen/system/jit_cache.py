"""A directory for Numba's compiled code where Numba finds none.

Numba stores compiled code beside the source, or in the user's cache directory, and refuses to compile if it can write
to neither: a package installed by root, in a container whose user has no home.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def ensure_cache_directory(sources: Path) -> None:
    """Point Numba to a private temporary directory if it cannot store compiled code anywhere else.

    Call it before the first function is compiled. The choice is inherited by processes started later.

    Parameters
    ----------
    sources : Path
        A directory that holds modules with compiled functions.

    Raises
    ------
    OSError
        No temporary directory can be written to either.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if any(_can_write(Path(path)) for path in (chosen, sources / "__pycache__", home) if path):
        return
    from numba import config  # type: ignore[import-untyped]

    directory = str(_private_directory())
    # Numba has read the environment already; worker processes have not.
    os.environ["NUMBA_CACHE_DIR"] = directory
    config.CACHE_DIR = directory  # type: ignore[attr-defined]


def _can_write(directory: Path) -> bool:
    """Return True if a file can be created in the directory, or in its nearest existing parent if it is missing."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        # The permission bits do not tell: root ignores them, and a file system may be mounted read-only.
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _private_directory() -> Path:
    """Return a directory of this user alone: cached code is executed, so nobody else may write there."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    directory = Path(tempfile.gettempdir()) / f"texturegen-{user}"
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not stat.S_IMODE(found.st_mode) & 0o077
    return directory if is_private or not hasattr(os, "getuid") else Path(tempfile.mkdtemp(prefix="texturegen-"))
