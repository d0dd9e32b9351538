"""Rebuild the damaged shards of a finished build, and no others.

A shard is a pure function of the recipe and its number, so the recipe in build.json is enough. A rebuilt tar must have
the sha256 that build.json records, and replaces the damaged one by a rename.
"""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from texturegen.builds.directory import BuildDirectory
from texturegen.builds.engines import Lost, find_engine
from texturegen.builds.job import run_job
from texturegen.builds.recipe import Plan, Recipe, make_plan, root_for_jobs
from texturegen.errors import DamagedError, OtherBuildError, UserError
from texturegen.shards.build_json import read_build
from texturegen.shards.layout import BUILD, MANIFEST, shard_name
from texturegen.shards.verify import inspect
from texturegen.sources import Source
from texturegen.storage.arrow import open_for_arrow
from texturegen.storage.ranges import local_path

MAX_LISTED = 5  # shards that a message names


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes
    ----------
    rebuilt : list of str
        File names of the shards that were rebuilt.
    faults : list of str
        Faults that remain because rebuilding a shard does not correct them, one sentence each.
    """

    rebuilt: list[str]
    faults: list[str]


def repair(
    directory: str | Path,
    root: str | None = None,
    workers: int = 1,
    checked: Callable[[int], object] = lambda samples: None,
    progress: Callable[[int], Callable[[int, int], object]] = lambda total: lambda made, failed: None,
) -> Repair:
    """Verify a shard directory and rebuild its damaged or missing shards; intact shards are not touched.

    Parameters
    ----------
    directory : str or Path
        A finished build.
    root : str, optional
        Directory of the data set's files, for data sets that have files.
    workers : int
        Processes for rebuilding and threads for verifying; 0: this process.
    checked : callable
        Called with the number of samples of each shard once it is verified.
    progress : callable
        Called with the number of textures to rebuild, if any; the function it returns is called with (textures made,
        images failed) as they are rebuilt.

    Returns
    -------
    Repair

    Raises
    ------
    BusyError
        Another process is at work in `directory`.
    OtherBuildError
        The data set, or the version of an algorithm, differs from that of the build.
    DamagedError
        The manifest is damaged, which rebuilding shards does not correct; or a rebuilt shard differs from the recorded
        checksum and was discarded.
    UserError
        There is no finished build, or it was made by `merge` or `split` and has no recipe.
    OSError
        The directory cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from texturegen.builds.repair import repair
    >>> Path("test-shards/shard-000000.tar").unlink()
    >>> repair("test-shards", workers=0).rebuilt
    ['shard-000000.tar']
    """
    directory = local_path(directory)
    with BuildDirectory(directory, "repairing", create=False) as locked:
        content = read_build(directory)
        locked.remove_leftovers()
        report = inspect(directory, checked, workers or None)
        if MANIFEST in report.faults:
            raise DamagedError(
                f"{report.faults[MANIFEST][0]}; a manifest cannot be repaired: copy it from a backup, or build again "
                "into a new directory with the recipe in build.json"
            )
        rebuilt: list[str] = []
        if report.damaged:
            rebuilt = _rebuild(locked, content, report.damaged, root, workers, progress)
    repaired = {*rebuilt}
    remaining = [fault for name, faults in report.faults.items() if name not in repaired for fault in faults]
    return Repair(rebuilt, remaining)


def _rebuild(
    locked: BuildDirectory,
    content: dict[str, Any],
    numbers: list[int],
    root: str | None,
    workers: int,
    progress: Callable[[int], Callable[[int, int], object]],
) -> list[str]:
    """Rebuild shards and return their names."""
    directory = locked.path
    if "derived" in content:
        damaged = [content["shards"][number]["name"] for number in numbers]
        raise UserError(
            f"{directory}: {_list(damaged)} damaged, and there is no recipe to rebuild from: run the `texturegen "
            f"{content['derived'].get('operation')}` that made this directory again"
        )
    plan, source = _restore_plan(directory, content, root)
    root = root_for_jobs(root, source)
    # Images that failed in the build fail again without being tried: the cause may have been a worker's death, or a
    # file that can be read today.
    rows = pq.read_table(
        open_for_arrow(directory / MANIFEST), columns=["position", "error"], filters=[("status", "=", "failed")]
    )
    known_failures = {row["position"]: row["error"] for row in rows.to_pylist()}
    total = sum(len(plan.positions(number)) for number in numbers) * max(plan.recipe.per_image, 1)
    recorded = {shard["name"]: shard["sha256"] for shard in content["shards"]}
    rebuilt, differing, lost = [], [], []
    run = find_engine("processes").load()
    with locked.scratch(source) as scratch:
        job = partial(run_job, plan, root, scratch, known_failures)
        for outcome in run(job, numbers, workers, progress(total), scratch):
            if isinstance(outcome, Lost):
                lost.append(shard_name(outcome.number, plan.prefix))
            elif outcome["sha256"] == recorded[outcome["name"]]:
                os.replace(scratch / outcome["name"], directory / outcome["name"])
                rebuilt.append(outcome["name"])
            else:
                differing.append(outcome["name"])
    if differing:
        raise DamagedError(
            f"{directory}: {_list(differing)} not replaced, because the rebuilt bytes differ from the recorded "
            f"checksum: {_explain(content)}"
        )
    if lost:
        raise UserError(f"{directory}: {_list(lost)} not rebuilt, because the worker process died; try fewer --workers")
    return sorted(rebuilt)


def _restore_plan(directory: Path, content: Mapping[str, Any], root: str | None) -> tuple[Plan, Source]:
    """Return the plan of build.json and its open data set, checked to be the original one."""
    try:
        recipe = Recipe(**content["recipe"])
    except (TypeError, UserError) as error:
        raise OtherBuildError(
            f"{directory}: its recipe is from another version, texturegen {content.get('texturegen')} ({error}); "
            "repair it with that version"
        ) from None
    plan, source = make_plan(recipe, root)
    if plan.matches(content):
        return plan, source
    present = plan.describe()
    try:
        recorded = plan.read_description(content)
    except (KeyError, TypeError):
        raise DamagedError(f"{directory / BUILD}: damaged; copy it again, or build into a new directory") from None
    if present["source"] != content["source"]:
        differ = [name for name in present["source"] if present["source"][name] != content["source"].get(name)]
        where = f"at {root}" if root else recipe.dataset
        raise OtherBuildError(
            f"{directory}: the data set {where} is not the one it was built from (its {', '.join(differ)} differ); "
            "give the original --root"
        )
    differ = [name for name in present["recipe"] if present["recipe"][name] != recorded["recipe"].get(name)]
    if differ:
        raise OtherBuildError(
            f"{directory}: its recipe resolves differently in this version ({', '.join(differ)}); build again into a "
            "new directory"
        )
    ours, theirs = present["algorithms"], recorded["algorithms"]
    changed = [
        f"{name} version {theirs[name]} there, {ours.get(name)} here"
        for name in theirs
        if theirs[name] != ours.get(name)
    ]
    raise OtherBuildError(
        f"{directory}: its shards were made by other algorithms ({', '.join(changed)}); repair it with texturegen "
        f"{content.get('texturegen')}"
    )


def _explain(content: Mapping[str, Any]) -> str:
    """Say why a rebuilt shard may differ: name the packages whose versions differ from the recorded ones."""
    differ = []
    for name, recorded in content.get("versions", {}).items():
        try:
            installed = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            installed = "missing"
        if installed != recorded:
            differ.append(f"{name} {recorded} recorded, {installed} installed")
    if differ:
        return f"{'; '.join(differ)}; install the recorded versions and repair again"
    return "the recorded versions are installed, so the processor differs, or build.json was changed"


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_LISTED])
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
