"""From a recipe to a finished shard directory: check, plan, map the missing jobs, join the parts."""

import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from texturegen.builds.directory import (
    RECIPE,
    claim,
    enter,
    is_finished,
    read_json,
    read_stats,
    remove_leftovers,
    reopen,
)
from texturegen.builds.engines import ATTEMPTS, Lost, find_engine
from texturegen.builds.job import STAGES, run_job, try_first
from texturegen.builds.recipe import RECORDED, Plan, Recipe, make_plan
from texturegen.errors import UserError
from texturegen.shards.layout import BUILD, MANIFEST, PARTS
from texturegen.shards.writer import join_manifests
from texturegen.storage.atomic import sha256_of, write_atomically, write_json
from texturegen.storage.lock import acquire

Progress = Callable[[int, int], object]
StartProgress = Callable[[int, int], Progress]


@dataclass(frozen=True)
class Result:
    """What a build made.

    Attributes
    ----------
    counts : samples, textures, failed and ignored.
    failures : (key, reason) of up to ten failed images.
    seconds : per stage (read, synthesise, quality, encode, write), added up over the workers.
    missing : of one part of an array, how many shards the others have still to make; None: the build is finished.
    """

    counts: dict[str, int]
    failures: list[tuple[str, str]]
    seconds: dict[str, float]
    missing: int | None = None


def build(
    recipe: Recipe,
    out: str | Path,
    root: str | None = None,
    download: bool = False,
    workers: int | None = 0,
    engine: str = "processes",
    engine_options: Mapping[str, Any] | None = None,
    part: tuple[int, int] | None = None,
    retry_failed: bool = False,
    progress: StartProgress = lambda total, already: lambda made, failed: None,
) -> Result:
    """Build the shards of `recipe` in directory `out`; finished shards of an earlier run of it are kept.

    Parameters
    ----------
    root : where the data set's files lie, for sources that have files.
    download : fetch missing files of the data set.
    workers : processes or tasks at once; 0: this process does all the work; None: as many as the engine sees CPUs. The
        bytes do not depend on it.
    engine, engine_options : a name in `engines.ENGINES`, and the options of its entry there.
    part : (i, n), 1 <= i <= n: only the i-th of n equal parts of the shards, as one of n processes that share `out`;
        when all have ended, `finish(out)` makes it a finished build.
    retry_failed : make shards in which images failed again, also those of a finished build.
    progress : called once with (textures in all, textures there already); what it returns is called with each number
        of textures made and of images failed; a negative number takes back what a worker had made when it died.

    Raises
    ------
    UserError : a fault of the recipe or the data set, `out` holds another build, or one that is still being made, or
        shards were lost because their workers died again and again. What is finished is kept.
    OSError : `out` cannot be written; the finished shards are kept.
    """
    options = dict(engine_options or {})
    entry = find_engine(engine, options)
    out = Path(out)
    plan, source = make_plan(recipe, root, download)
    ignored = len(source.ignored)
    numbers = range(plan.shards) if part is None else _numbers(plan, *part)
    if not (out / PARTS).exists() and not (out / BUILD).exists():
        try_first(plan, source)
    if is_finished(out, plan):
        result = _result(out)
        if not (retry_failed and result.counts["failed"]):
            return result
        if part is not None:
            raise UserError(f"{out}: is finished; try its failed images again without --shard-range")
    enter(out)
    with ExitStack() as locks:
        locks.enter_context(acquire(out / PARTS / "lock", shared=part is not None))
        if part is not None:
            locks.enter_context(acquire(out / PARTS / f"lock-{numbers.start}-{numbers.stop}"))
        if (out / BUILD).is_file():
            if not retry_failed:  # another process has finished it since
                return _result(out)
            reopen(out, plan)
        claim(out, plan, ignored, source)
        if retry_failed:
            for number in numbers:
                if (read_stats(out, plan, number) or {"failed": 0})["failed"]:
                    (out / PARTS / f"{number:06d}.json").unlink()
        remove_leftovers(out, None if part is None else numbers)
        run = partial(entry.load(), workers=workers, directory=out / PARTS, **options)
        try:
            _make(plan, numbers, out, root, run, progress)
        finally:
            remove_leftovers(out, None if part is None else numbers)
        if part is None:
            return _finish(out, plan, ignored)
    stats = {number: read_stats(out, plan, number) for number in range(plan.shards)}
    mine = [stats[number] for number in numbers]
    failures = _failures(*(out / PARTS / f"{number:06d}.parquet" for number in numbers))
    return Result(_count(mine), failures, _add_seconds(mine), sum(found is None for found in stats.values()))


def finish(out: str | Path) -> Result:
    """Join the parts that an array of builds left in `out`; a finished build is left as it is.

    Raises UserError when there is no build, one is still being made, or shards are missing (it says which).
    """
    out = Path(out)
    if (out / BUILD).is_file():
        if "derived" in read_json(out / BUILD):
            raise UserError(f"{out}: was made by merge or split, and is finished")
        return _result(out)
    path = out / PARTS / RECIPE
    if not path.is_file():
        raise UserError(f"{out}: no build to finish here; start one with `texturegen build`")
    try:
        content = json.loads(path.read_text())
        plan, ignored = Plan.from_description(content), int(content["ignored"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; run the same `texturegen build` into another directory") from None
    if plan.describe() != {name: value for name, value in content.items() if name != "ignored"}:
        made_by = f"format {content.get('format')}, texturegen {content.get('texturegen')}"
        raise UserError(f"{out}: was begun by another version ({made_by}); finish it with that one")
    with acquire(out / PARTS / "lock"):
        remove_leftovers(out, None)
        return _finish(out, plan, ignored)


def _numbers(plan: Plan, i: int, n: int) -> range:
    if not 1 <= i <= n:
        raise UserError(f"part {i} of {n}: the parts are counted from 1 to {n}")
    return range(plan.shards * (i - 1) // n, plan.shards * i // n)


def _make(
    plan: Plan,
    numbers: range,
    out: Path,
    root: str | None,
    run: Callable[..., Any],
    progress: StartProgress,
) -> None:
    """Map the jobs of the shards that are not there yet.

    An image on which a worker dies every time costs itself only: its shard is made again without it.
    """
    finished = [number for number in numbers if read_stats(out, plan, number)]
    missing = sorted({*numbers} - {*finished})
    per_image = max(plan.recipe.per_image, 1)
    total, already = (sum(len(plan.positions(n)) for n in some) * per_image for some in (numbers, finished))
    tell = progress(total, already)
    known_failures: dict[int, str] = {}
    lost: list[int] = []
    while missing:
        job = partial(run_job, plan, root, out, known_failures)
        again = []
        for outcome in run(job, missing, progress=tell):
            if isinstance(outcome, Lost):
                position = _position_of_death(plan, outcome)
                if position is None or position in known_failures:
                    lost.append(outcome.number)
                else:
                    known_failures[position] = (
                        f"{ATTEMPTS} worker processes died at this image (out of memory, or a crash)"
                    )
                    again.append(outcome.number)
        missing = again
    if lost:
        raise UserError(
            f"{out}: {len(lost)} of {plan.shards} shards could not be made, because their worker processes died "
            f"{ATTEMPTS} times (killed, or out of memory?): {_list(lost)}; the others are finished and kept: run the "
            "same command again to go on, with fewer --workers if memory was short"
        )


def _position_of_death(plan: Plan, lost: Lost) -> int | None:
    """The image at which the workers died; None when it is not known, or was not the same every time."""
    if len({*lost.made}) != 1:
        return None
    position = plan.positions(lost.number).start + lost.made[0] // max(plan.recipe.per_image, 1)
    return position if position in plan.positions(lost.number) else None


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, sorted(numbers)[:10])) + (", ..." if len(numbers) > 10 else "")


def _finish(out: Path, plan: Plan, ignored: int) -> Result:
    """Join the parts into the manifest, then write `build.json`, which makes the build a finished one."""
    found = {number: read_stats(out, plan, number) for number in range(plan.shards)}
    lost = [number for number, stats in found.items() if stats is None]
    if lost:
        raise UserError(
            f"{out}: {len(lost)} of {plan.shards} shards are missing ({_list(lost)}); run the same `texturegen build` "
            "again (of an array: those parts) to make them"
        )
    shards = [stats for stats in found.values() if stats]
    parts = [out / PARTS / f"{number:06d}.parquet" for number in found]
    _refuse_repeated_keys(parts)
    counts = _count(shards)
    if not counts["samples"]:
        reason = _failures(*parts)[0][1]
        for path in [*out.glob("shard-*.tar"), *(out / PARTS).iterdir()]:
            path.unlink()
        (out / PARTS).rmdir()
        raise UserError(f"none of the {counts['failed']} images could be used; the first: {reason}")
    write_atomically(out / MANIFEST, partial(join_manifests, parts))
    content = {
        **plan.describe(),
        "counts": {**counts, "ignored": ignored},
        "shards": [{name: value for name, value in stats.items() if name != "seconds"} for stats in shards],
        "manifest_sha256": sha256_of(out / MANIFEST),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED}},
        # All that another run of the same recipe may have otherwise.
        "run": {"seconds": _add_seconds(shards)},
    }
    write_json(out / BUILD, content)
    shutil.rmtree(out / PARTS)
    return _result(out)


def _count(shards: Sequence[dict[str, Any] | None]) -> dict[str, int]:
    return {name: sum(stats[name] for stats in shards if stats) for name in ("samples", "textures", "failed")}


def _add_seconds(shards: Sequence[dict[str, Any] | None]) -> dict[str, float]:
    return {stage: round(sum(stats["seconds"][stage] for stats in shards if stats), 3) for stage in STAGES}


def _refuse_repeated_keys(parts: list[Path]) -> None:
    columns = [pq.read_table(part, columns=["key", "index"]) for part in parts]
    rows = pa.concat_tables(columns)
    first = rows.filter(pc.equal(pc.fill_null(rows["index"], 0), 0))
    if pc.count_distinct(first["key"]).as_py() != first.num_rows:
        repeated = first["key"].value_counts().to_pylist()
        name = next(entry["values"] for entry in repeated if entry["counts"] > 1)
        raise UserError(f"the data set gives the key {name!r} to more than one image; keys must be unique")


def _result(out: Path) -> Result:
    content = read_json(out / BUILD)
    try:
        return Result(content["counts"], _failures(out / MANIFEST), content["run"]["seconds"])
    except KeyError as error:
        raise UserError(f"{out / BUILD}: damaged, it has no {error}") from None


def _failures(*tables: Path) -> list[tuple[str, str]]:
    """(key, reason) of the first ten failed rows."""
    failures: list[tuple[str, str]] = []
    for path in tables:
        if len(failures) < 10 and path.is_file():
            rows = pq.read_table(path, columns=["key", "error"], filters=[("status", "=", "failed")])
            failures += [(row["key"], row["error"]) for row in rows.slice(0, 10 - len(failures)).to_pylist()]
    return failures
