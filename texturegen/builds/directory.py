"""What a build's directory holds: whose it is, which shards are there, whether it is finished. All state is on disk.

out/build.json                 of a finished build, written last
out/parts/recipe.json          of one under way: what it is to be
out/parts/files-DIGEST.arrow   the list of its images, where they are files
out/parts/NNNNNN.parquet       a shard's rows of the manifest
out/parts/NNNNNN.json          a shard's stats, its commit mark
out/parts/lock                 held while somebody builds
"""

import json
import re
import reprlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from texturegen.builds.listing import read_paths, write_listing
from texturegen.builds.recipe import Plan
from texturegen.errors import UserError
from texturegen.shards.layout import BUILD, MANIFEST, PARTS
from texturegen.shards.reader import check_size
from texturegen.sources import Source
from texturegen.sources.folder import printable
from texturegen.storage.atomic import as_json, sha256_of, write_atomically, write_json, write_once

RECIPE = "recipe.json"
_SHARD = re.compile(r"shard-\d+\.tar(\.[0-9a-f]+\.tmp)?")


def is_finished(out: Path, plan: Plan) -> bool:
    """Whether `out` holds this plan's finished build; UserError when it holds another's, or one that lost a shard."""
    if not (out / BUILD).is_file():
        return False
    _refuse_other(out / BUILD, plan)
    content = read_json(out / BUILD)
    for shard in content["shards"]:
        check_size(out / shard["name"], shard["bytes"])
    manifest = out / MANIFEST
    if not manifest.is_file() or sha256_of(manifest) != content["manifest_sha256"]:
        raise UserError(
            f"{manifest}: {'damaged' if manifest.is_file() else 'missing'}; only a whole build makes it: copy it from "
            "elsewhere, or build again into another directory"
        )
    shutil.rmtree(out / PARTS, ignore_errors=True)  # left when an earlier run died between its last two steps
    return True


def enter(out: Path) -> None:
    """Make DIR/parts/, where the lock is; UserError when `out` holds what is no build."""
    parts = out / PARTS
    if not (parts / RECIPE).is_file() and not (out / BUILD).is_file() and out.exists():
        # Of an array's parts that start together, another may be at this same point, or on another node a little on.
        ours = ("lock", RECIPE, "files-") if parts.is_dir() else ()
        if (
            not out.is_dir()
            or any(entry.name != PARTS and not (ours and _SHARD.fullmatch(entry.name)) for entry in out.iterdir())
            or any(not entry.name.startswith(ours) for entry in (parts.iterdir() if ours else ()))
        ):
            raise UserError(f"{out}: exists and holds other things; choose another --out")
    parts.mkdir(parents=True, exist_ok=True)


def claim(out: Path, plan: Plan, ignored: int, source: Source) -> None:
    """Make `out` this plan's own, under the lock; UserError when it is another's."""
    path = out / PARTS / RECIPE
    if path.is_file():
        _refuse_other(path, plan, source)
    if read_paths(out, plan.source["digest"]) is None:
        write_listing(out, source)
    # The parts of an array hold the lock together: the first decides what it is for.
    if not write_once(path, as_json({**plan.describe(), "ignored": ignored})):
        _refuse_other(path, plan, source)


def read_stats(out: Path, plan: Plan, number: int) -> dict[str, Any] | None:
    """The stats of a shard that is there, whole as far as a look can tell; None: it is to be made."""
    path = out / PARTS / f"{number:06d}.json"
    try:
        stats = json.loads(path.read_text())
        whole = (
            stats.pop("fingerprint") == plan.fingerprint
            and (out / stats["name"]).stat().st_size == stats["bytes"]
            and pq.read_metadata(path.with_suffix(".parquet")).num_rows > 0
        )
    except (OSError, ValueError, KeyError, pa.ArrowInvalid):
        return None  # a power cut can leave a file short that was renamed already
    return stats if whole else None


def remove_leftovers(out: Path, numbers: range | None) -> None:
    """Remove temporary files of runs that were killed; under the lock, so that they are nobody's. None: of all."""
    if numbers is None:
        for name in (MANIFEST, BUILD):
            for path in out.glob(f"{name}.*.tmp"):
                path.unlink()
    for path in [*out.glob("shard-*.tmp"), *(out / PARTS).glob("*.tmp")]:
        number = path.name.removeprefix("shard-").partition(".")[0]
        if numbers is None or (number.isdecimal() and int(number) in numbers):
            path.unlink()


def reopen(out: Path, plan: Plan) -> None:
    """Turn a finished build back into one under way, all of whose shards are there; under the lock.

    The manifest is cut into the shards' parts again; the build stays a finished one until they are all written.
    """
    content = read_json(out / BUILD)
    seconds = content["run"]["seconds"]
    manifest = pq.ParquetFile(out / MANIFEST)
    rows: dict[int, list[pa.Table]] = {}
    for group in range(manifest.num_row_groups):  # a part has one or more of its own
        table = manifest.read_row_group(group)
        rows.setdefault(table["position"][0].as_py() // plan.recipe.shard_size, []).append(table)
    for number, stats in enumerate(content["shards"]):
        part = out / PARTS / f"{number:06d}.parquet"
        write_atomically(part, partial(pq.write_table, pa.concat_tables(rows.pop(number))))
        # The time is only known of all together.
        spent = seconds if number == 0 else dict.fromkeys(seconds, 0.0)
        write_json(part.with_suffix(".json"), {"fingerprint": plan.fingerprint, **stats, "seconds": spent})
    (out / BUILD).unlink()
    (out / MANIFEST).unlink()


def _refuse_other(path: Path, plan: Plan, source: Source | None = None) -> None:
    """UserError, with what differs, when the description in a file is not `plan`'s; `source`: the open data set."""
    try:
        there = json.loads(path.read_text())
        mine = plan.describe()
        old, new = _flat({name: there[name] for name in mine}), _flat(json.loads(json.dumps(mine)))
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        raise UserError(f"{path}: damaged; choose another --out or remove that directory") from None
    differ = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
    # Another method has other settings, another data set another digest: that need not be said.
    for cause, follows in (
        ("recipe.method", "recipe.settings."),
        ("recipe.dataset", "source."),
        ("recipe.limit", "source.items"),
    ):
        if cause in differ:
            differ = [name for name in differ if not name.startswith(follows)]
    if differ:
        where = path.parent if path.name == BUILD else path.parent.parent
        changed = _changed_files(where, there["source"]["digest"], source) if source else ""
        said = "; ".join(
            f"the data set's images differ{changed}"
            if name == "source.digest"
            else f"{name} {reprlib.repr(old.get(name))} there, {reprlib.repr(new.get(name))} asked"
            for name in differ
            if not (changed and name == "source.items")
        )
        raise UserError(f"{where}: holds another build ({said}); choose another --out or give the same options")


def _changed_files(out: Path, digest: str, source: Source) -> str:
    """What came and went since a build began with the list of that digest, for its user to put right."""
    before = read_paths(out, digest)
    if before is None or source.listing is None:
        return ""
    then, now = {*before}, {*source.listing.paths}
    gone, new = sorted(then - now), sorted(now - then)
    said = [
        f"{len(paths)} {'file' if len(paths) == 1 else 'files'} {verb}: {', '.join(map(printable, paths[:3]))}"
        + (", ..." if len(paths) > 3 else "")
        for paths, verb in ((gone, "gone"), (new, "new"))
        if paths
    ]
    return f": {', '.join(said)}" if said else ": the sizes of some files"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError:
        raise UserError(f"{path}: damaged; it is no JSON object") from None
