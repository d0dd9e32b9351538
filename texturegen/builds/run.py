"""Build a shard directory from a recipe: resolve the plan, run the jobs of missing shards, join the results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from texturegen.builds.directory import BuildDirectory
from texturegen.builds.engines import ATTEMPTS, Lost, find_engine
from texturegen.builds.job import STAGES, run_job, try_first
from texturegen.builds.recipe import Plan, Recipe, make_plan, root_for_jobs
from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.shards.build_json import read_build
from texturegen.shards.layout import BUILD, MANIFEST
from texturegen.shards.manifest import read_manifest
from texturegen.shards.publish import count, find_repeated_key
from texturegen.shards.writer import rows_file
from texturegen.sources import Source
from texturegen.storage.ranges import local_path

Progress = Callable[[int, int], object]
StartProgress = Callable[[int, int], Progress]

MAX_FAILURES = 10  # failed images, and ignored files, that a Result names
MAX_LISTED = 10  # shards that a message names


@dataclass(frozen=True)
class Result:
    """What a build made.

    Attributes
    ----------
    counts : dict of str to int
        Samples, textures, failed and ignored images.
    failures : list of (str, str)
        Key and reason of up to ten failed images.
    seconds : dict of str to float
        Seconds per stage (read, synthesise, quality, encode, write), summed over the workers.
    missing : int or None
        After one part of an array: shards that other parts still have to build. None: the build is finished.
    ignored : tuple of str
        Names of up to ten ignored files; empty after `finish`, which does not list the files.
    """

    counts: dict[str, int]
    failures: list[tuple[str, str]]
    seconds: dict[str, float]
    missing: int | None = None
    ignored: tuple[str, ...] = ()


def build(
    recipe: Recipe,
    out: str | Path,
    root: str | None = None,
    download: bool | None = False,
    workers: int | None = 0,
    engine: str = "processes",
    engine_options: Mapping[str, Any] | None = None,
    part: tuple[int, int] | None = None,
    retry_failed: bool = False,
    progress: StartProgress = lambda total, already: lambda made, failed: None,
) -> Result:
    """Build the shards of a recipe in a directory, or resume the build that is there.

    Shards that an earlier run finished are kept. The bytes of tars and manifest depend on the recipe, the data set and
    the package versions alone.

    Parameters
    ----------
    recipe : Recipe
        What to build.
    out : str or Path
        The shard directory; created if missing.
    root : str, optional
        Directory of the data set's files, for data sets that have files. None, for a benchmark or `imagenet100`: found
        as in `texturegen.sources.open_source`.
    download : bool or None
        Download the data set's official files that are missing. None: only without `root`.
    workers : int or None
        Processes or tasks at once. 0: build in this process. None: as many as the engine finds CPUs.
    engine : str
        A name in `texturegen.builds.engines.ENGINES`.
    engine_options : mapping, optional
        Options of that engine.
    part : (int, int), optional
        (i, n), 1 <= i <= n: build only the i-th of n parts of the shards, as one of n processes that share `out`. When
        all parts are done, `finish` joins them.
    retry_failed : bool
        Build the shards that hold failed images again, also those of a finished build.
    progress : callable
        Called once with (textures in total, textures already built); the function it returns is called with (textures
        made, images failed) as the build proceeds. A negative number takes back the work of a worker that died.

    Returns
    -------
    Result

    Raises
    ------
    OtherBuildError
        `out` holds a build of another recipe or data set.
    BusyError
        Another process is at work in `out`.
    MissingError, DamagedError
        The finished build in `out` has lost a file.
    UserError
        The recipe or the data set is invalid, or shards are missing because their workers died repeatedly. Finished
        shards are kept.
    OSError
        `out` cannot be written; finished shards are kept.

    Examples
    --------
    >>> import texturegen
    >>> recipe = texturegen.Recipe("shapes", limit=12, shard_size=5, method="patch-shuffle")
    >>> result = texturegen.build(recipe, "new")
    >>> result.counts["samples"], result.counts["failed"]
    (12, 0)
    >>> len(texturegen.open_shards("new"))
    12
    """
    out, options = local_path(out), dict(engine_options or {})
    entry = find_engine(engine, options)
    plan, source = make_plan(recipe, root, download)
    root = root_for_jobs(root, source)
    numbers = range(plan.shards) if part is None else _numbers_of_part(plan, *part)
    ignored, names = len(source.ignored), tuple(source.ignored[:MAX_FAILURES])
    _refuse_out_in_data_set(out, root, source)
    with BuildDirectory(out, part=None if part is None else numbers) as directory:
        if directory.is_finished:
            directory.check_finished(plan)
            result = replace(_read_result(out), ignored=names)
            if not (retry_failed and result.counts["failed"]):
                return result
            if part is not None:
                raise UserError(f"{out}: the build is finished; retry its failed images without --shard-range")
            directory.reopen(plan, ignored, source)
        elif not directory.is_begun:
            try_first(plan, source)
        plan = directory.claim(plan, ignored, source)
        if retry_failed:
            directory.forget_failed(plan, numbers)
        directory.remove_leftovers()
        run = partial(entry.load(), workers=workers, directory=directory.parts, **options)
        try:
            _make_shards(directory, plan, numbers, root, run, progress)
        finally:
            directory.remove_leftovers()
        if part is None:
            return replace(_finish(directory, plan, ignored), ignored=names)
        stats = [directory.read_stats(plan, number) for number in range(plan.shards)]
        mine = [found for number, found in enumerate(stats) if found is not None and number in numbers]
        failures = _read_failures(rows_file(out, number) for number in numbers)
        return Result(count(mine), failures, _sum_seconds(mine), stats.count(None), names)


def finish(out: str | Path) -> Result:
    """Join the shards that the parts of an array built; a finished build is left unchanged.

    Parameters
    ----------
    out : str or Path
        The directory that the parts share.

    Returns
    -------
    Result

    Raises
    ------
    BusyError
        A part is still being built.
    MissingError
        There is no build, or shards are missing; the message names them.
    DamagedError
        A file of the finished build is damaged.
    UserError
        Another version began the build, or the directory was made by `merge` or `split`.

    Examples
    --------
    >>> import texturegen
    >>> recipe = texturegen.Recipe("shapes", limit=12, shard_size=5, per_image=0)
    >>> texturegen.build(recipe, "new", part=(1, 2)).missing
    2
    >>> texturegen.build(recipe, "new", part=(2, 2)).missing
    0
    >>> texturegen.finish("new").counts["samples"]
    12
    """
    out = local_path(out)
    with BuildDirectory(out, create=False) as directory:
        if directory.is_finished:
            if "derived" in read_build(out):
                raise UserError(f"{out}: was made by merge or split, and is finished")
            directory.check_finished()
            return _read_result(out)
        if not directory.is_begun:
            raise MissingError(f"{out}: no build to finish; start one with `texturegen build`")
        plan, ignored = directory.read_plan()
        directory.remove_leftovers()
        return _finish(directory, plan, ignored)


def _numbers_of_part(plan: Plan, i: int, n: int) -> range:
    if not 1 <= i <= n:
        raise UserError(f"part {i} of {n} does not exist; parts are numbered from 1 to {n}")
    return range(plan.shards * (i - 1) // n, plan.shards * i // n)


def _refuse_out_in_data_set(out: Path, root: str | None, source: Source) -> None:
    """Raise UserError if the source would list `out` as part of the data set: the build could not be resumed."""
    if root is None or source.listing is None:
        return
    inner, top = out.resolve(), Path(root).resolve()
    # Sources that list only subfolders they know have paths that do not start at `root`.
    if not (top / source.listing.paths[0]).exists() and source.split:
        top /= source.split
    if not inner.is_relative_to(top) or not (top / source.listing.paths[0]).exists():
        return
    if not any(name.startswith(".") for name in inner.relative_to(top).parts):
        raise UserError(
            f"{out}: lies in the data set's folder {root}, where it would count as a class; choose another --out"
        )


def _make_shards(
    directory: BuildDirectory,
    plan: Plan,
    numbers: range,
    root: str | None,
    run: Callable[..., Any],
    progress: StartProgress,
) -> None:
    """Run the jobs of the shards that are missing.

    A shard whose workers always die at the same image is built again without that image.
    """
    finished = [number for number in numbers if directory.read_stats(plan, number)]
    missing = sorted({*numbers} - {*finished})
    per_image = max(plan.recipe.per_image, 1)
    total, already = (sum(len(plan.positions(n)) for n in some) * per_image for some in (numbers, finished))
    report = progress(total, already)
    known_failures: dict[int, str] = {}
    lost: list[int] = []
    while missing:
        job = partial(run_job, plan, root, directory.path, known_failures)
        retried = []
        for outcome in run(job, missing, progress=report):
            if isinstance(outcome, Lost):
                position = _position_of_death(plan, outcome)
                if position is None or position in known_failures:
                    lost.append(outcome.number)
                else:
                    known_failures[position] = (
                        f"{ATTEMPTS} worker processes died at this image (out of memory, or a crash)"
                    )
                    retried.append(outcome.number)
        missing = retried
    if lost:
        raise UserError(
            f"{directory.path}: {len(lost)} of {plan.shards} shards could not be built, because their worker processes "
            f"died {ATTEMPTS} times (killed, or out of memory): {_list(lost)}; the others are kept: run the same "
            "command again to resume, with fewer --workers if memory ran out"
        )


def _position_of_death(plan: Plan, lost: Lost) -> int | None:
    """Return the position of the image at which all workers died; None if it is unknown or differs."""
    if len({*lost.made}) != 1:
        return None
    position = plan.positions(lost.number).start + lost.made[0] // max(plan.recipe.per_image, 1)
    return position if position in plan.positions(lost.number) else None


def _finish(directory: BuildDirectory, plan: Plan, ignored: int) -> Result:
    """Finish a build whose shards are all committed."""
    out = directory.path
    found = [directory.read_stats(plan, number) for number in range(plan.shards)]
    shards = [stats for stats in found if stats is not None]
    if len(shards) < plan.shards:
        missing = [number for number, stats in enumerate(found) if stats is None]
        raise MissingError(
            f"{out}: {len(missing)} of {plan.shards} shards are missing ({_list(missing)}); run the same `texturegen "
            "build` again to build them (in an array: the same parts)"
        )
    parts = [rows_file(out, number) for number in range(plan.shards)]
    rows = pa.concat_tables(_read_rows(part, ["key", "index"]) for part in parts)
    first_rows = rows.filter(pc.equal(pc.fill_null(rows["index"], 0), 0))
    repeated = find_repeated_key(first_rows["key"])
    if repeated is not None:
        raise UserError(f"the data set gives the key {repeated!r} to more than one image; keys must be unique")
    counts = count(shards)
    if not counts["samples"]:
        reason = _read_failures(parts)[0][1]
        directory.discard(plan)
        raise UserError(f"none of the {counts['failed']} images could be used; the first failed with: {reason}")
    # Everything in which two builds of one recipe may differ.
    directory.finish(plan, ignored, shards, run={"seconds": _sum_seconds(shards)})
    return _read_result(out)


def _sum_seconds(shards: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {stage: round(sum(stats["seconds"].get(stage, 0.0) for stats in shards), 3) for stage in STAGES}


def _read_result(out: Path) -> Result:
    content = read_build(out)
    try:
        return Result(content["counts"], _read_failures([out / MANIFEST]), content["run"]["seconds"])
    except KeyError as error:
        raise DamagedError(f"{out / BUILD}: damaged, {error} is missing") from None


def _read_failures(tables: Iterable[Path]) -> list[tuple[str, str]]:
    """Return key and reason of the first failed images in manifests or parts of one."""
    failures: list[tuple[str, str]] = []
    for path in tables:
        if len(failures) < MAX_FAILURES and path.is_file():
            rows = _read_rows(path, ["key", "status", "error"])
            rows = rows.filter(pc.equal(rows["status"], "failed")).slice(0, MAX_FAILURES - len(failures))
            failures += [(row["key"], row["error"]) for row in rows.to_pylist()]
    return failures


def _read_rows(path: Path, columns: list[str]) -> pa.Table:
    try:
        return read_manifest(path, columns)
    except DamagedError as error:
        raise DamagedError(f"{path}: {error}; copy it from a backup, or build again into another directory") from None


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, sorted(numbers)[:MAX_LISTED])) + (", ..." if len(numbers) > MAX_LISTED else "")
