"""Estimate the cost of a build from a short trial: the same jobs on a few images spread over the data set."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from texturegen.builds.directory import prepare_jobs
from texturegen.builds.engines import Lost, find_engine
from texturegen.builds.job import write_shard
from texturegen.builds.listing import read_listing
from texturegen.builds.recipe import Plan, Recipe, make_plan, open_planned_source, root_for_jobs
from texturegen.errors import UserError
from texturegen.shards.writer import rows_file

RUN = 250  # images tried in sequence, as in a build: sources read ahead, or cache the file that they read last
MAX_SECONDS = 86400


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a build.

    Attributes
    ----------
    images, textures, shards : int
        What the build makes.
    bytes : int
        Size of the shards and the manifest.
    cpu_hours : float
        Summed over all workers, without their start.
    wall_seconds : float
        From start to end with `workers` workers.
    workers : int
        Worker processes, at most one per shard.
    tried, failed : int
        Images in the trial, and how many of them failed.
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
    """Estimate the cost of a build by building for some seconds in a temporary directory.

    Parameters
    ----------
    recipe : Recipe
        What to build.
    root : str, optional
        Directory of the data set's files.
    workers : int
        Worker processes of the build, at least 1; the trial uses as many.
    seconds : float
        Length of the trial, above 0 and below 86400.

    Returns
    -------
    Estimate

    Raises
    ------
    UserError
        The recipe or the data set is invalid, or a worker of the trial died.

    Examples
    --------
    >>> from texturegen import Recipe
    >>> from texturegen.builds.trial import estimate
    >>> cost = estimate(Recipe("shapes", limit=60, per_image=0, shard_size=25), seconds=0.1)
    >>> cost.images, cost.textures, cost.shards
    (60, 0, 3)
    """
    if not 0 < seconds < MAX_SECONDS:  # also refuses NaN
        raise UserError(f"--seconds is {seconds}; it must be above 0 and below {MAX_SECONDS}")
    plan, source = make_plan(recipe, root)
    root = root_for_jobs(root, source)
    workers = max(1, min(workers, plan.shards))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare_jobs(directory, source)
        # Compile kernels that are not cached on this machine yet before the clock starts.
        few = range(min(3, plan.items))
        write_shard(plan, source, directory, 2 * workers, few, {}, lambda made, failed: True)
        begin = time.perf_counter()
        job = partial(_try, plan, root, directory, workers, seconds)
        run = find_engine("processes").load()
        outcomes = list(run(job, list(range(workers)), workers, lambda made, failed: None, directory))
        wall = time.perf_counter() - begin
    trials = [outcome for outcome in outcomes if not isinstance(outcome, Lost)]
    if len(trials) < workers:
        raise UserError("a worker process of the trial died (killed, or out of memory); try fewer --workers")
    tried, spent = (sum(trial[name] for trial in trials) for name in ("tried", "seconds"))
    start = wall - max(trial["seconds"] for trial in trials)
    # A worker builds whole shards; the one with the most images finishes last.
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
    """Build shard `number` of a trial: runs of images from random places of the data set, until the time is up."""
    source = open_planned_source(plan, root, read_listing(directory, plan.source))
    runs = [range(start, min(start + RUN, plan.items)) for start in range(0, plan.items, RUN)]
    order = np.random.default_rng(0).permutation(len(runs))
    mine = [position for run in np.roll(order, number * len(runs) // workers) for position in runs[run]]
    write_shard(plan, source, directory, workers + number, mine[:2], {}, tick)  # load the kernels
    begin, cpu = time.perf_counter(), time.process_time()

    def positions() -> Iterator[int]:
        for position in mine:
            yield position
            if time.perf_counter() - begin > seconds:
                return

    stats = write_shard(plan, source, directory, number, positions(), {}, tick)
    return {
        "tried": stats["samples"] + stats["failed"],
        "failed": stats["failed"],
        "bytes": stats["bytes"] + rows_file(directory, number).stat().st_size,
        "seconds": time.perf_counter() - begin,
        "cpu": time.process_time() - cpu,
    }
