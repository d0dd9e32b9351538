"""From a recipe to a finished shard directory: check, plan, map the missing jobs, join the parts."""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from texturegen.build.engine import ENGINES
from texturegen.build.job import run_job, try_first
from texturegen.build.lock import take
from texturegen.build.recipe import Plan, Recipe, make_plan
from texturegen.errors import UserError
from texturegen.files import write_atomically, write_json
from texturegen.shards.reader import check_size
from texturegen.shards.schema import BUILD, MANIFEST, PARTS

RECIPE = "recipe.json"
# Packages that decide bytes; recorded, so that a difference between two machines can be explained.
RECORDED = ("numpy", "numba", "opencv-python-headless", "pyarrow")


@dataclass(frozen=True)
class Result:
    """What a build made: counts of samples, textures, failed and ignored, and up to ten reasons of failures."""

    counts: dict[str, int]
    failures: list[tuple[str, str]]


def build(
    recipe: Recipe,
    out: str | Path,
    root: str | None = None,
    download: bool = False,
    workers: int = 1,
    engine: str = "processes",
    progress: Callable[[int, int], Callable[[int], object]] = lambda total, already: lambda made: None,
) -> Result:
    """Build the shards of `recipe` in directory `out`; finished shards of an earlier run of it are kept.

    Parameters
    ----------
    root : where the data set's files lie, for sources that have files.
    download : fetch missing files of the data set.
    workers : processes; the bytes do not depend on it.
    progress : called once with (textures in all, textures there already); what it returns is called with each number
        of textures made.

    Raises
    ------
    UserError : a fault of the recipe or the data set, `out` holds another build, or one that is still being made, a
        worker died.
    OSError : `out` cannot be written; the finished shards are kept.
    """
    out = Path(out)
    plan, ignored = make_plan(recipe, root, download)
    if not (out / PARTS).exists() and not (out / BUILD).exists():
        try_first(plan, root)
    lock = _claim(out, plan)
    if lock is None:
        return _result(out)
    with lock:
        _make(plan, out, root, workers, engine, progress)
        _finish(out, plan, ignored)
    return _result(out)


def _make(
    plan: Plan,
    out: Path,
    root: str | None,
    workers: int,
    engine: str,
    progress: Callable[[int, int], Callable[[int], object]],
) -> None:
    """Map the jobs of the shards that are not there yet."""
    finished = {number: stats for number in range(plan.shards) if (stats := _stats(out, plan, number))}
    missing = [number for number in range(plan.shards) if number not in finished]
    per_image = max(plan.recipe.per_image, 1)
    made = progress(plan.items * per_image, sum(len(plan.positions(n)) for n in finished) * per_image)
    job = partial(run_job, plan, root, out)
    for _ in ENGINES[engine](job, missing, workers, made):
        pass


def _claim(out: Path, plan: Plan) -> IO[str] | None:
    """Make `out` this plan's own and lock it; None when it is finished already.

    UserError when it holds anything else, or another process is at work there.
    """
    parts = out / PARTS
    for path in (out / BUILD, parts / RECIPE):
        if path.is_file():
            _refuse_other(path, plan)
            if path.name == BUILD:
                for shard in json.loads(path.read_text())["shards"]:
                    check_size(out / shard["name"], shard["bytes"])
                shutil.rmtree(parts, ignore_errors=True)  # left when an earlier run died between its last two steps
                return None
            break
    else:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists and holds other things; choose another --out")
        parts.mkdir(parents=True, exist_ok=True)
        write_json(parts / RECIPE, plan.describe())
    lock = take(parts / "lock")
    for leftover in [*out.glob("shard-*.tar.tmp"), *parts.glob("*.tmp")]:
        leftover.unlink()
    return lock


def _refuse_other(path: Path, plan: Plan) -> None:
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
        said = "; ".join(
            "the data set's images differ"
            if name == "source.digest"
            else f"{name} {old.get(name)!r} there, {new.get(name)!r} asked"
            for name in differ
        )
        raise UserError(f"{where}: holds another build ({said}); choose another --out or give the same options")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def _stats(out: Path, plan: Plan, number: int) -> dict[str, Any] | None:
    path = out / PARTS / f"{number:06d}.json"
    if not path.is_file():
        return None
    stats = json.loads(path.read_text())
    return stats if stats.pop("fingerprint") == plan.fingerprint and (out / stats["name"]).is_file() else None


def _finish(out: Path, plan: Plan, ignored: list[str]) -> None:
    """Join the parts into the manifest, then write `build.json`, which makes the build a finished one."""
    shards = [_stats(out, plan, number) for number in range(plan.shards)]
    lost = [number for number, stats in enumerate(shards) if stats is None]
    if lost:
        raise UserError(f"{out}: shards {lost[:5]} are missing; run the same command again to make them")
    tables = [pq.read_table(out / PARTS / f"{number:06d}.parquet") for number in range(plan.shards)]
    manifest = pa.concat_tables(tables)
    _refuse_repeated_keys(manifest)
    counts = {name: sum(stats[name] for stats in shards if stats) for name in ("samples", "textures", "failed")}
    if not counts["samples"]:
        reason = manifest["error"][0].as_py()
        for path in [*out.glob("shard-*.tar"), *(out / PARTS).iterdir()]:
            path.unlink()
        (out / PARTS).rmdir()
        raise UserError(f"none of the {counts['failed']} images could be used; the first: {reason}")
    write_atomically(out / MANIFEST, lambda f: pq.write_table(manifest, f))
    content = {
        **plan.describe(),
        "counts": {**counts, "ignored": len(ignored)},
        "shards": shards,
        "manifest_sha256": hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED}},
    }
    write_json(out / BUILD, content)
    shutil.rmtree(out / PARTS)


def _refuse_repeated_keys(manifest: pa.Table) -> None:
    first = manifest.filter(pc.equal(pc.fill_null(manifest["index"], 0), 0))
    if pc.count_distinct(first["key"]).as_py() != first.num_rows:
        repeated = first["key"].value_counts().to_pylist()
        name = next(entry["values"] for entry in repeated if entry["counts"] > 1)
        raise UserError(f"the data set gives the key {name!r} to more than one image; keys must be unique")


def _result(out: Path) -> Result:
    content = json.loads((out / BUILD).read_text())
    failures: list[tuple[str, str]] = []
    if content["counts"]["failed"]:
        manifest = pq.read_table(out / MANIFEST, columns=["key", "error"], filters=[("status", "=", "failed")])
        failures = [(row["key"], row["error"]) for row in manifest.slice(0, 10).to_pylist()]
    return Result(content["counts"], failures)
