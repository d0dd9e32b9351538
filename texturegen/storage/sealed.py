"""JSON objects that carry a checksum of their own content."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM = "sha256"


def seal(content: Mapping[str, Any], key: str = CHECKSUM) -> dict[str, Any]:
    """Return a JSON object with its checksum, a SHA-256 (hex) under the given key.

    The digest is over the other entries as JSON with sorted keys and no white space (ASCII, non-ASCII characters as
    escapes), so that it does not depend on how the file is formatted.
    """
    content = {name: value for name, value in content.items() if name != key}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {**content, key: hashlib.sha256(canonical.encode()).hexdigest()}


def is_intact(content: Mapping[str, Any], key: str = CHECKSUM) -> bool:
    """Return True unless the object carries a checksum that its content does not have."""
    return key not in content or content == seal(content, key)
