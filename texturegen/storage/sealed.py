"""JSON objects that carry a checksum of their own content."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from texturegen.errors import DamagedError
from texturegen.storage.atomic import read_json

CHECKSUM = "sha256"


def seal(content: Mapping[str, Any], key: str = CHECKSUM) -> dict[str, Any]:
    """Return a JSON object with its checksum, a SHA-256 (hex) under the given key.

    The digest is over the other entries as JSON with sorted keys and no white space (ASCII, non-ASCII characters as
    escapes), so that it does not depend on how the file is formatted.
    """
    content = {name: value for name, value in content.items() if name != key}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {**content, key: hashlib.sha256(canonical.encode()).hexdigest()}


def is_intact(content: Mapping[str, Any], key: str = CHECKSUM, since: str | None = None) -> bool:
    """Return True if an object has the content that its checksum is of, or carries no checksum and need not.

    An object with the entry `since`, which is as old as its checksum is, must carry one.
    """
    if key not in content:
        return since not in content
    return content == seal(content, key)


def read_sealed(path: Path, remedy: str, key: str = CHECKSUM, since: str | None = None) -> dict[str, Any]:
    """Return the JSON object in a file, without its checksum; `remedy` ends the message if it is damaged.

    Raises
    ------
    DamagedError
        The file does not hold a JSON object, or `is_intact` is false for it.
    OSError
        The file cannot be read.
    """
    content = read_json(path)
    if not is_intact(content, key, since):
        raise DamagedError(f"{path}: damaged, its content differs from its own checksum; {remedy}")
    return {name: value for name, value in content.items() if name != key}
