"""The report of a journey: figures with their uncertainty, what they do and do not show, pictures, commands."""

import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import torch

from pipelines.recipe import Journey
from sacl_train.evaluate.probe import PROBES
from sacl_train.report.figures import flatten, name_set
from texturegen.storage.atomic import write_atomically

PICTURES = (
    ("curves", "training curves"),
    ("sheet", "image, texture, two weak views"),
    ("embedding", "images and their nearest neighbours"),
)
UNTRAINED = 0  # epochs of the run that everything is compared with
CLEAR = 2.0  # standard errors from which a difference between two runs is called one


def write_report(
    out: Path, journey: Journey, results: dict[str, dict[str, Any]], steps: list[tuple[str, float | None]]
) -> Path:
    """Write OUT/report.md and OUT/report.json; `results` is run -> probe -> what `sacl-eval` wrote.

    steps: the commands, with the seconds that each took where that is known.
    """
    lines = [f"# `{journey.name}`: from images to figures", ""]
    for probe in next(iter(results.values())):
        if probe in PROBES:
            lines += [f"## {probe} top-1", "", *_table(results, probe), ""]
            lines += [*_findings(results, probe), ""]
        elif rows := _all_figures(results, probe):
            lines += [f"## {probe}, %", "", *rows, ""]
    lines += [
        "One seed, one machine: a difference under two standard errors is noise, and one above it can still be the "
        "luck of one seed.",
        "",
        "## Pictures",
        "",
        "Images beside their textures:",
        "",
        "![images beside their textures](preview.png)",
        "",
    ]
    for name in results:
        for picture, caption in PICTURES:
            if (out / "runs" / name / f"{picture}.png").is_file():
                lines += [f"Run `{name}`, {caption}:", "", f"![{caption}](runs/{name}/{picture}.png)", ""]
    lines += [
        "## Commands",
        "",
        f"On {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}.",
    ]
    lines += [
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


def _all_figures(results: dict[str, dict[str, Any]], probe: str) -> list[str]:
    """A row per figure, a column per run; nothing where the probe has none."""
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
    tests = next(iter(results.values()))[probe]["test"]
    heads, rows = ["run", "epochs"], []
    for test in tests:
        heads.append(f"{_name(test, tests)}, %")
        if "texture_decisions" in test:
            heads.append(f"{_name(test, tests)}: decisions by texture, %")
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
    """One sentence per comparison, worded by the figures."""
    untrained = [name for name in results if results[name][probe]["trained_epochs"] == UNTRAINED]
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
    for mine, other in zip(tests, results[base][probe]["test"], strict=True):
        points = 100 * (mine["top1"] - other["top1"])
        error = 100 * math.hypot(_standard_error(mine), _standard_error(other))
        verdict = "more than chance would give" if abs(points) > CLEAR * error else "no more than chance would give"
        lines.append(
            f"- `{name}` against `{base}` on {_name(mine, tests)}: {points:+.1f} points ± {error:.1f}, {verdict}."
        )
    return lines


def _name(test: dict[str, Any], tests: list[dict[str, Any]]) -> str:
    name = name_set(test, tests)
    return f"{name}, {test['variant']}" if test["variant"] else name


def _standard_error(test: dict[str, Any]) -> float:
    """Of an accuracy over so many independent images, as a fraction."""
    return math.sqrt(test["top1"] * (1 - test["top1"]) / test["images"])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
