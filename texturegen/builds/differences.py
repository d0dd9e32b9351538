"""How the build in a directory differs from the one that was asked for."""

import reprlib
from pathlib import Path
from typing import Any

from texturegen.builds.listing import read_listing
from texturegen.builds.recipe import Plan
from texturegen.errors import DamagedError, OtherBuildError
from texturegen.shards.build_json import read_description
from texturegen.shards.layout import PARTS
from texturegen.sources import Listing, Source
from texturegen.storage.names import printable

MAX_LISTED = 3  # file names in a message
# A cause, and the differences that follow from it: a different method has different settings.
CONSEQUENCES = (
    *((f"recipe.{name}", "recipe.settings.") for name in ("method", "per_image")),
    *((f"recipe.{name}", "algorithms.") for name in ("method", "encoding", "size", "per_image")),
    ("recipe.dataset", "source."),
    ("recipe.limit", "source.items"),
)


def refuse_other_build(path: Path, plan: Plan, source: Source | None = None) -> None:
    """Compare the description of a build on disk with `plan`.

    Parameters
    ----------
    path : Path
        DIR/build.json, or DIR/parts/recipe.json of an unfinished build.
    plan : Plan
        The build that was asked for.
    source : Source, optional
        Its open data set, to name the files that differ from those the build on disk began with.

    Raises
    ------
    OtherBuildError
        They differ, and the message says in what; or `merge` or `split` made the directory.
    DamagedError
        The file is not a description of a build.
    """
    directory = path.parent.parent if path.parent.name == PARTS else path.parent
    present = read_description(path)
    if isinstance(derived := present.get("derived"), dict):
        raise OtherBuildError(
            f"{directory}: was made by `texturegen {derived.get('operation')}`, and is finished; choose another --out, "
            "or build the directories that it was made of"
        )
    try:
        old, new = _flatten(plan.read_description(present)), _flatten(plan.describe())
        digest = present["source"]["digest"]
    except (KeyError, TypeError):
        raise DamagedError(f"{path}: damaged; choose another --out or remove that directory") from None
    differ = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
    for cause, consequence in CONSEQUENCES:
        if cause in differ:
            differ = [name for name in differ if not name.startswith(consequence)]
    if not differ:
        return
    files = "" if source is None or digest is None else _describe_changed_files(directory, digest, source)
    reasons = [
        f"the data set's images differ{files}"
        if name == "source.digest"
        else f"{name} {reprlib.repr(old.get(name))} there, {reprlib.repr(new.get(name))} requested"
        for name in differ
        if not (files and name == "source.items")
    ]
    raise OtherBuildError(
        f"{directory}: holds another build ({'; '.join(reasons)}); choose another --out or give the same options"
    )


def _describe_changed_files(directory: Path, digest: str, source: Source) -> str:
    """Name the files that differ between the listing `digest`, with which a build began, and a data set."""
    now = source.listing
    before = read_listing(directory, {"digest": digest, "classes": []})
    if not isinstance(before, Listing) or now is None:
        return ""
    sizes = dict(zip(before.paths, before.sizes, strict=True))
    old, new = {*sizes}, {*now.paths}
    resized = [path for path, size in zip(now.paths, now.sizes, strict=True) if sizes.get(path, size) != size]
    changes = [
        f"{len(paths)} {'file' if len(paths) == 1 else 'files'} {verb}: {', '.join(map(printable, paths[:MAX_LISTED]))}"
        + (", ..." if len(paths) > MAX_LISTED else "")
        for paths, verb in ((sorted(old - new), "removed"), (sorted(new - old), "added"), (resized, "of another size"))
        if paths
    ]
    return f": {', '.join(changes)}" if changes else ""


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} for {"a": {"b": value}}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
