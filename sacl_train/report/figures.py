"""The JSON file of a probe's figures, the figures as a flat table, and the command and versions that produced them."""

import json
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from texturegen import __version__
from texturegen.storage.atomic import write_atomically
from texturegen.storage.sealed import read_sealed, seal

# Key in a row of "test" -> label.
_TEST_FIGURES = {
    "top1": "top-1",
    "top5": "top-5",
    "texture_decisions": "texture decisions",
    "destroyed": "top-1 on shuffled cells",
    "relative": "relative to untouched images",
    "auroc": "AUROC",
    "aupr": "AUPR",
    "fpr95": "FPR at 95 % TPR",
}
# Key of a whole probe -> label.
_FIGURES = {
    "bias": "bias",
    "shape_decisions": "shape decisions",
    "texture_decisions": "texture decisions",
    "clean_error": "error without corruption",
    "mean_error": "mean error",
    "background_gap": "mixed-same minus mixed-random",
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
        Name of the command, to which the arguments of this process are added.
    """
    versions = {"sacl": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # some are optional
            versions[name] = version(name)
    return {"command": shlex.join([*shlex.split(program), *sys.argv[1:]]), "versions": versions}


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as a JSON object with a checksum of its content."""
    content = json.loads(json.dumps(figures))  # what a reader will see: keys are strings, tuples are lists
    write_atomically(path, json.dumps(seal(content), indent=2) + "\n")


def read_figures(path: Path) -> dict[str, Any]:
    """Return the figures that `write_figures` wrote. A file without a checksum is read as it is.

    Raises
    ------
    DamagedError
        The file holds no JSON object, or its content differs from its checksum.
    OSError
        The file cannot be read.
    """
    return read_sealed(path, "evaluate again")


MEASURED = ("protocol", "network", "norm_statistics", "precision")


def describe_probes(figures: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """Return how each probe was measured: rows of the probe, the values of `MEASURED` and the runs measured so.

    Parameters
    ----------
    figures : dict
        Run -> probe -> the JSON that `sacl-eval` wrote for it.
    """
    runs: dict[tuple[str, ...], list[str]] = {}
    for run, probes in figures.items():
        for probe, found in probes.items():
            runs.setdefault((probe, *(str(found.get(key, "-")) for key in MEASURED)), []).append(run)
    return [[*row, ", ".join(names)] for row, names in sorted(runs.items())]


def describe_probe(figures: dict[str, Any]) -> str:
    """Return a line on how the figures of a probe were measured; "" for those of a version that did not record it."""
    if "protocol" not in figures:
        return ""
    origins = {"images": "BatchNorm statistics of whole images", "training": "BatchNorm statistics of the training"}
    norm = origins.get(figures["norm_statistics"], "no BatchNorm")
    where = f"{figures['network']} network, {norm}, {figures['precision']}"
    return f"{figures['protocol']}; {where}"


def flatten(probe: str, figures: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a probe, keyed by descriptive labels.

    Parameters
    ----------
    probe : str
        Name of the probe, the prefix of every label.
    figures : dict
        The JSON that `sacl-eval` wrote for it.

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
            if test.get(key) is not None:
                values[f"{name}: {label}"] = test[key]
    for key, label in _FIGURES.items():
        if figures.get(key) is not None:
            values[f"{probe}: {label}"] = figures[key]
    return values


def name_set(test: dict[str, Any], tests: list[dict[str, Any]]) -> str:
    """Return a name that distinguishes a test set from the others.

    The name is the split, with the location if another set has the same split, or the location if there is no split.

    Parameters
    ----------
    test : dict
        A row of "test", with "split" and "set".
    tests : list of dict
        All rows.
    """
    split, location = test["split"], test.get("set")
    if not split:
        return str(location)
    is_shared = any(other["split"] == split and other.get("set") != location for other in tests)
    return f"{split} ({location})" if is_shared else str(split)
