"""Make the damaged shards of a finished build again, and nothing else.

A shard is a pure function of recipe and number, so the recipe in build.json is enough; the new tar must have the
sha256 that build.json has of it, and takes the damaged one's place by one rename. Until then it lies in DIR/repair/,
with the lock; the `parts/` of a build is not used, because `texturegen build` clears it away in a finished directory.
"""

import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from texturegen.builds.engines import Lost, find_engine
from texturegen.builds.job import run_job
from texturegen.builds.listing import write_listing
from texturegen.builds.recipe import Plan, Recipe, make_plan
from texturegen.errors import UserError
from texturegen.shards.layout import MANIFEST, PARTS, shard_name
from texturegen.shards.reader import read_build
from texturegen.shards.verify import Report, inspect
from texturegen.sources import Source
from texturegen.storage.lock import acquire

SCRATCH = "repair"


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes
    ----------
    rebuilt : names of the shards made again.
    faults : sentences on what is wrong still, and no shard's rebuilding mends.
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
    """Verify `directory` and build its damaged or missing shards again. Sound shards are not touched.

    Parameters
    ----------
    root : where the data set's files lie, for sources that have files.
    checked : called with the number of samples of each shard that is verified.
    progress : called with the number of textures to be made, if any; what it returns with what was made and failed.

    Raises
    ------
    UserError : no finished build; one that was merged or split; its manifest is damaged; the data set or the versions
        are not those of the build; a rebuilt shard is not the recorded one (it is thrown away); another repair runs.
    OSError : the directory cannot be written.
    """
    directory = Path(directory)
    content = read_build(directory)
    scratch = directory / SCRATCH
    scratch.mkdir(exist_ok=True)
    with acquire(scratch / "lock"):
        try:
            report = inspect(directory, checked, workers)
            if MANIFEST in report.faults:
                raise UserError(
                    f"{report.faults[MANIFEST][0]}; a manifest is only made by a whole build: copy it from elsewhere, "
                    "or build again into a new directory, with the recipe that build.json holds"
                )
            rebuilt = _rebuild(directory, scratch, content, report, root, workers, progress)
        finally:
            shutil.rmtree(scratch)
    mended = {*rebuilt}
    return Repair(rebuilt, [fault for name, faults in report.faults.items() if name not in mended for fault in faults])


def _rebuild(
    directory: Path,
    scratch: Path,
    content: dict[str, Any],
    report: Report,
    root: str | None,
    workers: int,
    progress: Callable[[int], Callable[[int, int], object]],
) -> list[str]:
    if not report.damaged:
        return []
    names = [content["shards"][number]["name"] for number in report.damaged]
    if "derived" in content:
        raise UserError(
            f"{directory}: {_list(names)} damaged, and there is no recipe to build from, as this directory was made by "
            f"`texturegen {content['derived']['operation']}`: make it again in that way"
        )
    plan, source = _same_plan(directory, content, root)
    for stale in scratch.iterdir():  # of a repair that was killed
        if stale.name != "lock":
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    (scratch / PARTS).mkdir()
    write_listing(scratch, source)
    # What failed in the build is recorded again as failed, not tried: it may have been a worker's death, or a file
    # that can be read today.
    failed = pq.read_table(
        directory / MANIFEST, columns=["position", "error"], filters=[("status", "=", "failed")]
    ).to_pylist()
    known_failures = {row["position"]: row["error"] for row in failed}
    total = sum(len(plan.positions(number)) for number in report.damaged) * max(plan.recipe.per_image, 1)
    recorded = {shard["name"]: shard["sha256"] for shard in content["shards"]}
    rebuilt, differing, lost = [], [], []
    job = partial(run_job, plan, root, scratch, known_failures)
    run = find_engine("processes").load()
    for outcome in run(job, report.damaged, workers, progress(total), scratch):
        if outcome is None or isinstance(outcome, Lost):
            lost += [] if outcome is None else [shard_name(outcome.number)]
            continue
        name = outcome["name"]
        if outcome["sha256"] == recorded[name]:
            os.replace(scratch / name, directory / name)
            rebuilt.append(name)
        else:
            differing.append(name)
            (scratch / name).unlink()
    if differing:
        raise UserError(
            f"{directory}: {_list(differing)} came out other than recorded and not replaced: {_explain(content)}"
        )
    if lost:
        raise UserError(f"{directory}: {_list(lost)} not made, as the worker process died; try fewer --workers")
    return sorted(rebuilt)


def _same_plan(directory: Path, content: Mapping[str, Any], root: str | None) -> tuple[Plan, Source]:
    """The plan of build.json, and the data set, opened and checked to be the one of then."""
    try:
        recipe = Recipe(**content["recipe"])
    except TypeError as error:
        raise UserError(
            f"{directory}: its recipe is of another version, texturegen {content.get('texturegen')} ({error}); "
            "repair it with that one"
        ) from None
    plan, source = make_plan(recipe, root)
    now = json.loads(json.dumps(plan.describe()))
    if now == {name: content.get(name) for name in now}:
        return plan, source
    for name in ("format", "texturegen"):
        if now[name] != content.get(name):
            raise UserError(
                f"{directory}: was built by {name} {content.get(name)}, this is {now[name]}; repair it with the former"
            )
    if now["source"] != content["source"]:
        differ = [name for name in now["source"] if now["source"][name] != content["source"].get(name)]
        where = f"at {root}" if root else recipe.dataset
        raise UserError(
            f"{directory}: the data set {where} is not the one it was built from (others are its {', '.join(differ)}); "
            "give the --root of then"
        )
    differ = [name for name in now["recipe"] if now["recipe"][name] != content["recipe"].get(name)]
    raise UserError(f"{directory}: its recipe would be resolved otherwise today ({', '.join(differ)}); build anew")


def _explain(content: Mapping[str, Any]) -> str:
    """Why a rebuilt shard may differ: the packages that decide bytes, where they are others than then."""
    differ = []
    for name, then in content.get("versions", {}).items():
        try:
            now = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            now = "missing"
        if now != then:
            differ.append(f"{name} {then} then, {now} now")
    if differ:
        return f"{'; '.join(differ)}; install the versions of then and repair again"
    return "the recorded versions are the present ones, so another processor, or build.json itself was changed"


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
