"""What a build will cost, from a short trial of the real thing: the same jobs, on a few images spread over the set."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from texturegen.builds.engines import Lost, find_engine
from texturegen.builds.job import write_shard
from texturegen.builds.listing import read_paths, write_listing
from texturegen.builds.recipe import Plan, Recipe, make_plan, open_planned_source
from texturegen.errors import UserError
from texturegen.shards.layout import PARTS

# Images that are tried one after the other, as a build does: sources read ahead or keep the file that was read last.
RUN = 250


@dataclass(frozen=True)
class Estimate:
    """What a build is going to take.

    Attributes
    ----------
    images, textures, shards : counts.
    bytes : of the shards and the manifest.
    cpu_hours : of all workers together, without their start.
    wall_seconds : from the start to the end, at so many `workers`.
    tried, failed : images in the trial, and how many of them could not be used.
    """

    images: int
    textures: int
    shards: int
    bytes: int
    cpu_hours: float
    wall_seconds: float
    workers: int
    tried: int
    failed: int


def estimate(recipe: Recipe, root: str | None = None, workers: int = 1, seconds: float = 10.0) -> Estimate:
    """Build for about `seconds` in a temporary directory, with as many workers as the build is to have.

    Raises UserError for a fault of the recipe or the data set, or when the trial's workers die.
    """
    if not 0 < seconds < 86400:  # nor NaN
        raise UserError(f"a trial of {seconds} seconds is none; 10 are usual")
    plan, source = make_plan(recipe, root)
    workers = max(1, min(workers, plan.shards))
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / PARTS).mkdir()
        write_listing(Path(directory), source)
        # Kernels never compiled on this machine are so once, before the clock runs.
        few = range(min(3, plan.items))
        write_shard(plan, source, Path(directory), 2 * workers, few, {}, lambda made, failed: True)
        begin = time.perf_counter()
        job = partial(_try, plan, root, Path(directory), workers, seconds)
        run = find_engine("processes").load()
        outcomes = list(run(job, list(range(workers)), workers, lambda made, failed: None, Path(directory)))
        wall = time.perf_counter() - begin
    trials = [outcome for outcome in outcomes if not isinstance(outcome, Lost)]
    if len(trials) < workers:
        raise UserError("a worker process died in the trial (killed, or out of memory?); try with fewer --workers")
    tried, spent = (sum(trial[name] for trial in trials) for name in ("tried", "seconds"))
    start = wall - max(trial["seconds"] for trial in trials)
    # Whole shards go to workers: the one with the most images ends last.
    busiest = sum(len(plan.positions(number)) for number in range(0, plan.shards, workers))
    return Estimate(
        images=plan.items,
        textures=plan.items * recipe.per_image,
        shards=plan.shards,
        bytes=round(sum(trial["bytes"] for trial in trials) / tried * plan.items),
        cpu_hours=sum(trial["cpu"] for trial in trials) / tried * plan.items / 3600,
        wall_seconds=start + spent / tried * busiest,
        workers=workers,
        tried=tried,
        failed=sum(trial["failed"] for trial in trials),
    )


def _try(
    plan: Plan,
    root: str | None,
    directory: Path,
    workers: int,
    seconds: float,
    number: int,
    tick: Callable[[int, int], bool],
) -> dict[str, Any]:
    """Shard `number` of a trial: runs of images from places in random order, for as long as there is time."""
    source = open_planned_source(plan, root, read_paths(directory, plan.source["digest"]))
    runs = [range(start, min(start + RUN, plan.items)) for start in range(0, plan.items, RUN)]
    order = np.random.default_rng(0).permutation(len(runs))
    mine = [position for run in np.roll(order, number * len(runs) // workers) for position in runs[run]]
    write_shard(plan, source, directory, workers + number, mine[:2], {}, tick)  # loads the kernels
    begin, cpu = time.perf_counter(), time.process_time()

    def while_there_is_time() -> Iterator[int]:
        for position in mine:
            yield position
            if time.perf_counter() - begin > seconds:
                return

    stats = write_shard(plan, source, directory, number, while_there_is_time(), {}, tick)
    rows = directory / PARTS / f"{number:06d}.parquet"
    return {
        "tried": stats["samples"] + stats["failed"],
        "failed": stats["failed"],
        "bytes": stats["bytes"] + rows.stat().st_size,
        "seconds": time.perf_counter() - begin,
        "cpu": time.process_time() - cpu,
    }
