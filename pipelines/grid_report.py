"""A grid's table, in Markdown and JSON, and its plot: mean and standard deviation over seeds, the paper's beside."""

import json
import statistics
from pathlib import Path
from typing import Any

from pipelines.grids import Cell, Grid
from sacl_train.report.figures import provenance
from texturegen.storage.atomic import write_atomically

Found = dict[tuple[str, str], list[dict[str, Any]]]

# key of a cell's figures -> what it is called, factor
FIGURES = {
    "linear": ("linear top-1, %", 100.0),
    "top5": ("linear top-5, %", 100.0),
    "knn": ("kNN (k 20) top-1, %", 100.0),
    "destroyed": ("linear, patches shuffled, %", 100.0),
    "corruption": ("corruption error, %", 100.0),
    "shape_bias": ("shape bias, %", 100.0),
    "told_apart": ("textures told from images, %", 100.0),
    "one_direction": ("of it in one direction, %", 100.0),
    "own_texture": ("cosine to own texture", 1.0),
    "spread": ("spread of embeddings", 1.0),
}


def write_grid(out: Path, grid: Grid, scale: str, found: Found) -> Path:
    """Write OUT/GRID.md, GRID.json and GRID.png of what has been found so far; return the first."""
    lines = [f"# {grid.title}", ""]
    rows, columns = list(dict.fromkeys(c.row for c in grid.cells)), list(dict.fromkeys(c.column for c in grid.cells))
    seeds = max(map(len, found.values()))
    if scale != "paper":
        lines += [
            f"Scale `{scale}`: smaller data, encoder and training than the paper's. Where its figures are given, in "
            "brackets, they are of its own setting and no mark to reach here.",
            "",
        ]
    if len(columns) == 1 and len(grid.figures) > 1:
        keys = [key for key in grid.figures if any(key in run for runs in found.values() for run in runs)]
        lines += _table([grid.rows, "seeds", *(FIGURES[key][0] for key in keys)])
        for row in rows:
            runs = found[row, columns[0]]
            cells = [_summary(runs, key) for key in keys]
            cells = [text + _paper(grid, row, columns[0], key) for text, key in zip(cells, keys, strict=True)]
            lines.append(_line([row, str(len(runs)), *cells]))
    else:
        for key in grid.figures:
            lines += [f"## {FIGURES[key][0]}", "", *_table([grid.rows, *columns])]
            for row in rows:
                cells = [_summary(found.get((row, c), []), key) + _paper(grid, row, c, key) for c in columns]
                lines.append(_line([row, *cells]))
            lines.append("")
    lines += _differences(grid, columns, found)
    counts = {len(runs) for runs in found.values() if runs}
    over = f"{seeds} seeds" if len(counts) == 1 else f"up to {seeds} seeds"
    spread = f"Mean ± standard deviation over {over}." if seeds > 1 else "One seed: no deviation is known."
    lines += ["", spread, "", f"![]({grid.name}.png)", ""]
    made_by = provenance("python -m pipelines")
    content = [
        {"row": c.row, "column": c.column, "paper": c.paper, "settings": c.settings, "runs": found[c.row, c.column]}
        for c in grid.cells
    ]
    write_atomically(
        out / f"{grid.name}.json", json.dumps({"scale": scale, **made_by, "cells": content}, indent=1) + "\n"
    )
    _draw(out / f"{grid.name}.png", grid, rows, columns, found)
    path = out / f"{grid.name}.md"
    write_atomically(path, "\n".join(lines))
    return path


def _differences(grid: Grid, columns: list[str], found: Found) -> list[str]:
    """What a row has more than the one it is compared with, of the same seeds, with the mean's standard error."""
    lines: list[str] = []
    keys = [key for key in grid.figures if FIGURES[key][1] == 100 and key not in ("told_apart", "one_direction")]
    for column in columns:
        for row, base in grid.against.items():
            pairs = paired(found.get((row, column), []), found.get((base, column), []))
            if len(pairs) > 1:
                cells = [_difference(pairs, key) for key in keys]
                lines.append(_line([row, base, str(len(pairs)), *cells]))
    if not lines:
        return []
    heads = [grid.rows, "against", "seeds", *(FIGURES[key][0] for key in keys)]
    return [
        "",
        "## Differences, points",
        "",
        *_table(heads),
        *lines,
        "",
        "Mean over pairs of the same seed ± its error.",
    ]


def paired(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Runs of the same seed."""
    of_seed = {run["seed"]: run for run in base}
    return [(run, of_seed[run["seed"]]) for run in runs if run["seed"] in of_seed]


def _difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]], key: str) -> str:
    values = [(mine[key] - its[key]) * FIGURES[key][1] for mine, its in pairs if key in mine and key in its]
    if len(values) < 2:
        return "-"
    return f"{statistics.fmean(values):+.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def mean_and_deviation(runs: list[dict[str, Any]], key: str) -> tuple[float, float] | None:
    """Over the runs that have the figure; the deviation of one is 0. None where none has it."""
    values = [run[key] * FIGURES[key][1] for run in runs if key in run]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _summary(runs: list[dict[str, Any]], key: str) -> str:
    figures = mean_and_deviation(runs, key)
    if figures is None:
        return "-"
    places = 1 if FIGURES[key][1] == 100 else 3
    return f"{figures[0]:.{places}f} ± {figures[1]:.{places}f}" if len(runs) > 1 else f"{figures[0]:.{places}f}"


def _cell(grid: Grid, row: str, column: str) -> Cell | None:
    return next((cell for cell in grid.cells if (cell.row, cell.column) == (row, column)), None)


def _paper(grid: Grid, row: str, column: str, key: str) -> str:
    cell = _cell(grid, row, column)
    return f" ({cell.paper[key]:.2f})" if cell is not None and key in cell.paper else ""


def _draw(path: Path, grid: Grid, rows: list[str], columns: list[str], found: Found) -> None:
    from matplotlib.figure import Figure

    key = grid.figures[0]
    turned = len(columns) == 1 and len(rows) > 1  # one column: its rows along the axis
    along, lines = (rows, columns) if turned else (columns, rows)
    figure = Figure(figsize=(max(6.0, 0.55 * len(along) * max(1, len(lines) / 2)), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(lines)
    for number, line in enumerate(lines):
        places, means, errors, marks, papers = [], [], [], [], []
        for at, name in enumerate(along):
            row, column = (name, line) if turned else (line, name)
            figures = mean_and_deviation(found.get((row, column), []), key)
            place = float(at) if grid.numeric else at + (number - (len(lines) - 1) / 2) * width
            if figures is not None:
                places.append(place)
                means.append(figures[0])
                errors.append(figures[1])
            cell = _cell(grid, row, column)
            if cell is not None and key in cell.paper:
                marks.append(place)
                papers.append(cell.paper[key])
        colour = f"C{number}"
        if grid.numeric:
            axes.errorbar(places, means, errors, marker="o", capsize=3, color=colour, label=line)
        else:
            axes.bar(places, means, width, yerr=errors, capsize=3, color=colour, label=line)
        if papers:
            axes.plot(marks, papers, "D", mfc="none", color=colour, label=f"{line}, the paper's")
    axes.set_xticks(
        range(len(along)), along, rotation=0 if grid.numeric else 40, ha="center" if grid.numeric else "right"
    )
    axes.set(ylabel=FIGURES[key][0], title=grid.title)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3, axis="y")
    if len(lines) > 1 or axes.get_legend_handles_labels()[1][1:]:
        axes.legend(fontsize=7)
    write_atomically(path, lambda f: figure.savefig(f, format="png", dpi=110))


def _table(heads: list[str]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads))]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
