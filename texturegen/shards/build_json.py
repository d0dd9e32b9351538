"""Read build.json, and check all of it that does not need the manifest.

build.json says what labels mean, what `repair` builds, and which checksums the other files have, so it carries a
checksum of its own content. Builds of texturegen 0.1.0 lack it and stay readable.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.shards.layout import BUILD, FORMAT, PARTS, PREFIX, PREFIXES, READABLE, shard_name
from texturegen.storage.names import printable
from texturegen.storage.ranges import Directory, open_directory
from texturegen.storage.sealed import is_intact, read_sealed

COUNTS = ("samples", "textures", "failed")
_SEALED_SINCE = "algorithms"  # texturegen 0.1.0 wrote neither this entry nor checksums
_MAX_COUNT = 1 << 62
_MAX_TEXTURES = 1 << 31  # per image; `index` is int32
# Types of values that no reader needs, but that commands print or copy where they are there.
_TYPES: dict[tuple[str, str], type | UnionType] = {
    **{("recipe", name): str | None for name in ("dataset", "split", "method")},
    **{("source", name): str | None for name in ("name", "split")},
    ("recipe", "settings"): dict | None,
    ("recipe", "seed"): int | None,
    ("derived", "operation"): str,
    ("run", "seconds"): dict,
}
_OBJECTS = {"algorithms": int | None, "versions": str, "derived": object, "run": object}  # types of their values
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_build(directory: str | Path) -> dict[str, Any]:
    """Return the content of build.json in a directory or at a URL.

    Raises
    ------
    MissingError : there is no build.json, so there is no finished build.
    DamagedError : the file is not JSON, lacks a value, contradicts itself, or differs from its checksum.
    UserError : the file cannot be read, or has a format that this version does not read.
    """
    return load_build(open_directory(directory))


def shards_digest(build: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the shards' checksums: it changes with any byte of the shards."""
    return hashlib.sha256("".join(shard["sha256"] for shard in build["shards"]).encode()).hexdigest()


def load_build(files: Directory) -> dict[str, Any]:
    """Return the content of build.json in an open directory; raises the same exceptions as `read_build`."""
    data = files.fetch(BUILD)
    if data is not None:
        return _parse(data, files.locate(BUILD))
    directory = files.locate("").rstrip("/")
    if files.exists(PARTS):
        raise MissingError(f"{directory}: this build is not finished; run the same `texturegen build` again")
    if Path(directory).is_file():
        raise MissingError(f"{directory}: is a file; give the directory of the shards, the one with {BUILD}")
    raise MissingError(f"{directory}: no shards here ({BUILD} is missing); make some with `texturegen build`")


def read_description(path: Path) -> dict[str, Any]:
    """Return the JSON object in build.json or parts/recipe.json, without its checksum; raises as `read_sealed` does."""
    return read_sealed(path, "build into another directory", since=_SEALED_SINCE)


def check_size(path: Path, size: int) -> None:
    """Raise MissingError if a shard is missing, DamagedError if it does not have `size` bytes.

    A shard of 0 bytes, all of whose images failed, has no file.
    """
    compare_size(str(path), path.stat().st_size if path.is_file() else None, size)


def compare_size(file: str, found: int | None, size: int) -> None:
    """Raise as `check_size` does; `found` is the size of the file, or None if it is missing."""
    if size == 0:
        return
    if found is None:
        raise MissingError(f"{file}: missing; rebuild it from the data set with `texturegen repair`, or copy it again")
    if found != size:
        raise DamagedError(
            f"{file}: {found} bytes, but {size} were written; list all damage with `texturegen verify`, or rebuild the "
            "shard from the data set with `texturegen repair`"
        )


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        build = json.loads(data)
    except (ValueError, RecursionError):
        build = None
    if not isinstance(build, dict):
        raise DamagedError(f"{name}: damaged (not a JSON object); copy it again, or build into a new directory")
    number = build.get("format")
    if type(number) is int and number > FORMAT:
        raise UserError(f"{name}: format {number} is newer than this version reads ({FORMAT}); upgrade texturegen")
    if type(number) is int and number < READABLE[0]:
        raise UserError(f"{name}: format {number} was written by an earlier version; build again")
    try:
        fault = _find_fault(build)
    except (KeyError, TypeError) as error:
        fault = f"no {error.args[0]}" if isinstance(error, KeyError) else "a list or an object is missing"
    if not fault and not is_intact(build, since=_SEALED_SINCE):
        fault = "its content differs from its own checksum"
    if fault:
        raise DamagedError(f"{name}: damaged ({fault}); copy it again, or build into a new directory")
    return build


def _find_fault(build: dict[str, Any]) -> str | None:
    """Return the first fault, or None; raises KeyError or TypeError if a value or its parent is missing."""
    if type(build["format"]) is not int:
        return "format is not a number"
    textures, classes, shards = build["recipe"]["per_image"], build["source"]["classes"], build["shards"]
    if not _is_count(textures) or textures >= _MAX_TEXTURES:
        return "recipe.per_image is not a valid count"
    size = build["recipe"].get("shard_size", 1)
    if not _is_count(size) or not size:
        return "recipe.shard_size is not a positive integer"
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "source.classes is not a list of names"
    if not _is_sha256(build["manifest_sha256"]):
        return "manifest_sha256 is not a SHA-256"
    if not isinstance(shards, list):
        return "shards is not a list"
    prefix = build["recipe"].get("prefix") or PREFIX
    if not isinstance(prefix, str) or not PREFIXES.fullmatch(prefix):
        return "recipe.prefix is not a name"
    for number, shard in enumerate(shards):
        if shard["name"] != shard_name(number, prefix):
            return f"shard {number} is named {printable(str(shard['name']))}, not {shard_name(number, prefix)}"
        if not _is_sha256(shard["sha256"]):
            return f"the sha256 of {shard['name']} is not a SHA-256"
        if not all(_is_count(shard[count]) for count in ("bytes", *COUNTS)):
            return f"bytes or a count of {shard['name']} is not a non-negative integer"
    for count in COUNTS:
        total = build["counts"][count]
        if not _is_count(total):
            return f"counts.{count} is not a non-negative integer"
        if total != (found := sum(shard[count] for shard in shards)):
            return f"counts.{count} is {total}, but the shards add up to {found}"
    if build["counts"]["textures"] != build["counts"]["samples"] * textures:
        return f"counts.textures is not counts.samples times {textures}"
    items = build["source"].get("items")
    if items is not None and items != build["counts"]["samples"] + build["counts"]["failed"]:
        return f"source.items is {printable(str(items))}, but samples and failed in counts add up to another number"
    return _find_wrong_type(build)


def _find_wrong_type(build: dict[str, Any]) -> str | None:
    for part, of_values in _OBJECTS.items():
        found = build.get(part, {})
        if not isinstance(found, dict) or not all(isinstance(value, of_values) for value in found.values()):
            return f"{part} is not an object, or a value in it has the wrong type"
    for (part, name), kind in _TYPES.items():
        if name in build.get(part, {}) and not isinstance(build[part][name], kind):
            return f"{part}.{name} has the wrong type"
    if not all(isinstance(value, int | float) for value in build.get("run", {}).get("seconds", {}).values()):
        return "a value of run.seconds is not a number"
    if not _is_count(build["counts"].get("ignored", 0)):
        return "counts.ignored is not a non-negative integer"
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None
