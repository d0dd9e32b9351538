"""Prove that a shard directory holds what its manifest says."""

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc

from texturegen.errors import UserError
from texturegen.images import decode_image
from texturegen.shards.reader import read_build, read_manifest
from texturegen.shards.schema import MANIFEST, texture_member


def verify(directory: str | Path, progress: Callable[[int], object] = lambda samples: None) -> list[str]:
    """Check counts, checksums, member names and that every member decodes.

    Returns one sentence per fault, each naming its file; an empty list means all is well.
    `progress` is called with the number of samples of each shard once it is checked.
    Raises UserError when there is no finished build to check.
    """
    directory = Path(directory)
    build = read_build(directory)
    faults: list[str] = []
    path = directory / MANIFEST
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != build["manifest_sha256"]:
        faults.append(f"{path}: checksum differs from build.json: the file was changed or damaged")
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return [*faults, str(error)]
    ok = manifest.filter(pc.equal(manifest["status"], "ok"))
    counted = {
        "samples": pc.count_distinct(ok["key"]).as_py(),
        "textures": ok.num_rows - ok["index"].null_count,
        "failed": manifest.num_rows - ok.num_rows,
    }
    for name, count in counted.items():
        if build["counts"][name] != count:
            faults.append(f"{path}: {count} {name}, but build.json counts {build['counts'][name]}")
    for shard in build["shards"]:
        rows = ok.filter(pc.equal(ok["shard"], shard["name"])).to_pylist()
        faults += _verify_shard(directory / shard["name"], shard["sha256"], rows)
        progress(shard["samples"])
    return faults


def _verify_shard(path: Path, sha256: str, rows: list[dict]) -> list[str]:
    if not path.is_file():
        return [f"{path}: missing"]
    with open(path, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() == sha256:
            faults = []
        else:
            faults = [f"{path}: checksum differs from build.json: the file was changed or damaged"]
        places = {}  # member name -> (offset, size), as the manifest has them
        for row in rows:
            places[f"{row['key']}.{row['image_ext']}"] = (row["image_offset"], row["image_size"])
            if row["index"] is not None:
                places[texture_member(row["key"], row["index"])] = (
                    row["texture_offset"],
                    row["texture_size"],
                )
        length = path.stat().st_size
        for name, (offset, size) in places.items():
            if not 0 <= offset <= offset + size <= length:
                faults.append(f"{path}: {name}: the manifest places it outside the file")
                continue
            f.seek(offset)
            try:
                decode_image(f.read(size))
            except UserError as error:
                faults.append(f"{path}: {name}: {error}")
        labels = {f"{row['key']}.cls": None for row in rows}
        faults += _compare_members(path, f, {**places, **labels})
    return faults


def _compare_members(path: Path, f: object, expected: dict) -> list[str]:
    """The tar, read as any other tool reads it, holds exactly the expected members at the expected places."""
    found = {}
    f.seek(0)  # type: ignore[attr-defined]
    try:
        with tarfile.open(fileobj=f, mode="r:") as tar:  # type: ignore[call-overload]
            for info in tar:
                if info.name in found or not info.isreg():
                    return [f"{path}: {info.name}: a duplicate, or not a plain file"]
                found[info.name] = (info.offset_data, info.size)
    except tarfile.TarError as error:
        return [f"{path}: not a readable tar ({error})"]
    faults = [f"{path}: {name}: missing from the tar" for name in expected.keys() - found.keys()]
    faults += [f"{path}: {name}: not in the manifest" for name in found.keys() - expected.keys()]
    moved = [name for name, place in expected.items() if place and name in found and found[name] != place]
    faults += [f"{path}: {name}: not where the manifest says" for name in moved]
    return sorted(faults)
