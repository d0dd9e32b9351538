"""The figures of a probe's JSON as one flat list, for tables; and what made them."""

import shlex
import sys
from importlib.metadata import version
from typing import Any

from texturegen import __version__

PACKAGES = ("torch", "torchvision", "timm", "numpy")


def provenance(program: str) -> dict[str, Any]:
    """ "command", as it was typed, and "versions" of this package, Python and what figures depend on."""
    python = ".".join(map(str, sys.version_info[:3]))
    versions = {"sacl": __version__, "python": python, **{name: version(name) for name in PACKAGES}}
    return {"command": shlex.join([*shlex.split(program), *sys.argv[1:]]), "versions": versions}


def flatten(probe: str, figures: dict[str, Any]) -> dict[str, float]:
    """The figures (0..1) of what a probe wrote, by a name that tells what they are of."""
    found: dict[str, float] = {}
    for test in figures.get("test", []):
        marks = [probe, test.get("variant") or "", f"{test['share']:.0%} of labels" if "share" in test else ""]
        name = ", ".join(part for part in (*marks, str(test["split"] or test["set"])) if part)
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
