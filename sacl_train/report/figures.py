"""The figures of a probe's JSON as one flat list, for tables; and what made them."""

import shlex
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from texturegen import __version__

PACKAGES = ("torch", "torchvision", "timm", "numpy", "imagecorruptions-imaug", "scikit-learn")


def provenance(program: str) -> dict[str, Any]:
    """ "command", as it was typed, and "versions" of this package, Python and what figures depend on."""
    versions = {"sacl": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # of an extra
            versions[name] = version(name)
    return {"command": shlex.join([*shlex.split(program), *sys.argv[1:]]), "versions": versions}


def flatten(probe: str, figures: dict[str, Any]) -> dict[str, float]:
    """The figures (0..1) of what a probe wrote, by a name that tells what they are of."""
    found: dict[str, float] = {}
    tests = figures.get("test", [])
    for test in tests:
        marks = [probe, test.get("variant") or "", f"{test['share']:.0%} of labels" if "share" in test else ""]
        name = ", ".join(part for part in (*marks, name_set(test, tests)) if part)
        for key in ("top1", "top5", "texture_decisions", "destroyed"):
            if key in test:
                found[f"{name}: {key.replace('_', ' ')}"] = test[key]
    for key in ("bias", "shape_decisions", "texture_decisions", "clean_error", "mean_error"):
        if figures.get(key) is not None:
            found[f"{probe}: {key.replace('_', ' ')}"] = figures[key]
    for key in ("told_apart", "one_direction", "own_share"):
        if key in figures:
            found[f"{probe}: {key.replace('_', ' ')}"] = figures[key]
    return found


def name_set(test: dict[str, Any], tests: list[dict[str, Any]]) -> str:
    """What a row of `tests` is of: its split, with the set where another set has the same one; the set without."""
    split, place = test["split"], test.get("set")
    if not split:
        return str(place)
    return f"{split} ({place})" if any(t["split"] == split and t.get("set") != place for t in tests) else str(split)
