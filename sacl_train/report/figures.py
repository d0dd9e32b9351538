"""The figures of a probe's JSON as a flat list, for tables, and the versions that produced them."""

import shlex
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from texturegen import __version__

# Figure of a row of "test" -> its label.
_TEST_FIGURES = {
    "top1": "top-1",
    "top5": "top-5",
    "texture_decisions": "texture decisions",
    "destroyed": "top-1 on shuffled cells",
}
# Figure of a whole probe -> its label.
_FIGURES = {
    "bias": "bias",
    "shape_decisions": "shape decisions",
    "texture_decisions": "texture decisions",
    "clean_error": "error without corruption",
    "mean_error": "mean error",
    "told_apart": "accuracy, textures against images",
    "one_direction": "explained by one direction",
    "own_share": "explained by the own texture",
}
PACKAGES = ("torch", "torchvision", "timm", "numpy", "imagecorruptions-imaug", "scikit-learn")


def provenance(program: str) -> dict[str, Any]:
    """Return what produced the figures: "command", as it was typed, and "versions" of Python and the packages.

    Parameters
    ----------
    program : str
        Name of the command, with which the arguments of this process are combined.
    """
    versions = {"sacl": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # some are optional
            versions[name] = version(name)
    return {"command": shlex.join([*shlex.split(program), *sys.argv[1:]]), "versions": versions}


def flatten(probe: str, figures: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a probe by a descriptive label.

    Parameters
    ----------
    probe : str
        Name of the probe, the start of every label.
    figures : dict
        What `sacl-eval` wrote for it.

    Returns
    -------
    dict of str to float
        Figures in 0..1.

    Examples
    --------
    >>> flatten("knn", {"test": [{"split": "test", "variant": "k=20", "top1": 0.5}]})
    {'knn, k=20, test: top-1': 0.5}
    """
    values: dict[str, float] = {}
    tests = figures.get("test", [])
    for test in tests:
        share = f"{test['share']:.0%} of labels" if "share" in test else ""
        name = ", ".join(part for part in (probe, test.get("variant"), share, name_set(test, tests)) if part)
        for key, label in _TEST_FIGURES.items():
            if key in test:
                values[f"{name}: {label}"] = test[key]
    for key, label in _FIGURES.items():
        if figures.get(key) is not None:
            values[f"{probe}: {label}"] = figures[key]
    return values


def name_set(test: dict[str, Any], tests: list[dict[str, Any]]) -> str:
    """Return a name for a test set that tells it from the others.

    That is its split, with the location if another set has the same split; a set without splits has its location.

    Parameters
    ----------
    test : dict
        A row of "test", with "split" and "set".
    tests : list of dict
        All rows.
    """
    split, place = test["split"], test.get("set")
    if not split:
        return str(place)
    return f"{split} ({place})" if any(t["split"] == split and t.get("set") != place for t in tests) else str(split)
