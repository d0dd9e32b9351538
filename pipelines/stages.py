"""What has been done from what: a stage is skipped when its output is there and nothing it was made of has changed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from texturegen import __version__
from texturegen.files import write_json


def is_done(record: Path, description: Any, inputs: list[Path], outputs: list[Path]) -> bool:
    """Whether `record` says that `outputs`, all still as they were, were made by `description` from these inputs."""
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError):
        return False
    return bool(found == _state(description, inputs, outputs))


def record_done(record: Path, description: Any, inputs: list[Path], outputs: list[Path]) -> None:
    """Write what `is_done` asks for."""
    write_json(record, _state(description, inputs, outputs))


def newest_checkpoint(run: Path) -> list[Path]:
    """The checkpoint that an evaluation reads, or nothing."""
    return sorted(run.glob("checkpoint-*.pt"))[-1:]


def _state(description: Any, inputs: list[Path], outputs: list[Path]) -> dict[str, Any]:
    files = {kind: [_stamp(path) for path in paths] for kind, paths in (("inputs", inputs), ("outputs", outputs))}
    # As JSON would hold it: what is compared has been read from a file.
    return {"what": json.loads(json.dumps(description)), "version": __version__, **files}


def _stamp(path: Path) -> list[Any]:
    if not path.is_file():
        return [str(path), None]
    if path.suffix == ".json":  # small, and written anew with the same content where nothing has changed
        return [str(path), hashlib.sha256(path.read_bytes()).hexdigest()]
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]
