"""Local files for Arrow, opened here because of what Arrow does with a path.

Arrow takes a path such as "file:x" or "s3:x" for a URL, and cannot encode one that is not UTF-8.
"""

import os
from pathlib import Path

import pyarrow as pa


def open_for_arrow(path: Path) -> pa.OSFile:
    """Open a local file for reading by Arrow.

    Parameters
    ----------
    path : Path
        Any name that the file system allows.

    Raises
    ------
    OSError
        The file cannot be opened.
    """
    return pa.OSFile(os.fsencode(path))


def map_for_arrow(path: Path) -> pa.MemoryMappedFile:
    """Map a local file for reading by Arrow; nothing may shorten the file while it is mapped."""
    return pa.memory_map(os.fsencode(path))
