"""The Markdown report of a recipe: figures with their uncertainty, comparisons, pictures and commands."""

import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import torch

from pipelines.recipe import Journey
from sacl_train.evaluate.probe import PROBES
from sacl_train.report.figures import describe_probe, flatten, name_set
from texturegen.storage.atomic import write_atomically

PREVIEW = "Training images, each beside its synthesised texture"
PICTURES = (
    ("curves", "training curves by epoch"),
    ("sheet", "images, each with its texture if it has one, and two weak views as the network sees them"),
    ("embedding", "images, each followed by its nearest neighbours by cosine of the features"),
)
SIGNIFICANT = 2.0  # standard errors


def write_report(
    out: Path,
    journey: Journey,
    results: dict[str, dict[str, Any]],
    steps: list[tuple[str, float | None]],
    html: Path | None = None,
) -> Path:
    """Write OUT/report.md and OUT/report.json.

    Parameters
    ----------
    out : Path
        Output directory, which contains the pictures.
    journey : Journey
        The recipe.
    results : dict
        Run -> command of `sacl-eval` -> figures.
    steps : list of (str, float or None)
        The commands, each with its duration in seconds if known.
    html : Path, optional
        HTML report in `out`, which the Markdown report links to.

    Returns
    -------
    Path
        The path of report.md.
    """
    lines = [f"# `{journey.name}`: from images to figures", ""]
    if html is not None:
        lines += [f"The same runs with interactive charts: [{html.name}]({html.name}).", ""]
    for probe, figures in next(iter(results.values())).items():
        how = [f"{line}.", ""] if (line := describe_probe(figures)) else []
        if probe in PROBES:
            lines += [f"## {probe} top-1", "", *how, *_table(results, probe), ""]
            lines += [*_findings(results, probe), ""]
        elif rows := _all_figures(results, probe):
            lines += [f"## {probe}, %", "", *how, *rows, ""]
    lines += [
        "± is one standard error over the test images. Each run has one seed: a difference of less than two standard "
        "errors is noise, and a larger one can still be due to the seed.",
        "",
        "## Pictures",
        "",
        *_pictures(out, list(results)),
        "## Commands",
        "",
        f"On {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}.",
        "",
        "```",
        *(line if seconds is None else f"{line}   # {seconds:.0f} s" for line, seconds in steps),
        "```",
        "",
    ]
    write_atomically(out / "report.json", json.dumps({"recipe": journey.name, "results": results}, indent=2) + "\n")
    path = out / "report.md"
    write_atomically(path, "\n".join(lines))
    return path


def _pictures(out: Path, runs: list[str]) -> list[str]:
    """Return the Markdown of all existing pictures with numbered captions."""
    captions = {"preview.png": PREVIEW}
    captions |= {
        f"runs/{run}/{name}.png": f"Run `{run}`: {caption}"
        for run in runs
        for name, caption in PICTURES
        if (out / "runs" / run / f"{name}.png").is_file()
    }
    return [
        line
        for number, (path, caption) in enumerate(captions.items(), start=1)
        for line in (f"![{caption.replace('`', '')}]({path})", "", f"*Figure {number}. {caption}.*", "")
    ]


def _all_figures(results: dict[str, dict[str, Any]], probe: str) -> list[str]:
    """Return a table with a row per figure and a column per run; empty if the probe has none."""
    found = {name: flatten(probe, probes[probe]) for name, probes in results.items()}
    labels = list(dict.fromkeys(label for figures in found.values() for label in figures))
    rows = [
        [label.removeprefix(f"{probe}: ").removeprefix(f"{probe}, ")]
        + [f"{100 * figures[label]:.1f}" if label in figures else "-" for figures in found.values()]
        for label in labels
    ]
    heads = ["figure", *found]
    return [_row(heads), _row(["---"] * len(heads)), *map(_row, rows)] if rows else []


def _table(results: dict[str, dict[str, Any]], probe: str) -> list[str]:
    """Return a table with a row per run and a column per test set."""
    tests = next(iter(results.values()))[probe]["test"]
    heads, rows = ["run", "epochs"], []
    for test in tests:
        heads.append(f"{_name(test, tests)}, %")
        if "texture_decisions" in test:
            heads.append(f"{_name(test, tests)}: texture decisions, %")
    for name, probes in results.items():
        figures = probes[probe]
        cells = [name, str(figures["trained_epochs"])]
        for test in figures["test"]:
            cells.append(f"{100 * test['top1']:.1f} ± {100 * _standard_error(test):.1f}")
            if "texture_decisions" in test:
                cells.append(f"{100 * test['texture_decisions']:.1f}")
        rows.append(cells)
    return [_row(heads), _row(["---"] * len(heads)), *map(_row, rows)]


def _findings(results: dict[str, dict[str, Any]], probe: str) -> list[str]:
    """Return a sentence per comparison of a trained run with the untrained runs and with `none`."""
    untrained = [name for name in results if results[name][probe]["trained_epochs"] == 0]
    trained = [name for name in results if name not in untrained]
    lines = []
    for base in untrained:
        for name in trained:
            lines += _compare(results, probe, name, base)
    if "none" in trained:
        for name in trained:
            if name != "none":
                lines += _compare(results, probe, name, "none")
    return lines


def _compare(results: dict[str, dict[str, Any]], probe: str, name: str, base: str) -> list[str]:
    lines = []
    tests = results[name][probe]["test"]
    for test, base_test in zip(tests, results[base][probe]["test"], strict=True):
        points = 100 * (test["top1"] - base_test["top1"])
        error = 100 * math.hypot(_standard_error(test), _standard_error(base_test))
        verdict = "more" if abs(points) > SIGNIFICANT * error else "no more"
        lines.append(
            f"- `{name}` compared with `{base}` on {_name(test, tests)}: {points:+.1f} ± {error:.1f} points, "
            f"{verdict} than two standard errors."
        )
    return lines


def _name(test: dict[str, Any], tests: list[dict[str, Any]]) -> str:
    name = name_set(test, tests)
    return f"{name}, {test['variant']}" if test["variant"] else name


def _standard_error(test: dict[str, Any]) -> float:
    """Return the standard error of an accuracy (0..1) over independent images."""
    return math.sqrt(test["top1"] * (1 - test["top1"]) / test["images"])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
