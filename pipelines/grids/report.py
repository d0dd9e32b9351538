"""Write a grid's table in Markdown and JSON and its plot: mean and deviation over seeds, and the paper's figures."""

import json
import statistics
from pathlib import Path
from typing import Any

from pipelines.grids.figures import FIGURES, NOT_COMPARED, Found, Runs, head, line, pair_by_seed
from pipelines.grids.grid import Cell, Grid
from pipelines.grids.means import differences_of_means, table_of_means
from sacl_train.report.figures import provenance
from texturegen.storage.atomic import write_atomically


def write_grid(out: Path, grid: Grid, scale: str, found: Found) -> Path:
    """Write OUT/GRID.md, OUT/GRID.json and OUT/GRID.png.

    Parameters
    ----------
    out : Path
        Directory of the grid.
    grid : Grid
        The cells to show.
    scale : str
        Key of SCALES.
    found : dict
        (row, column) -> figures of every finished run; empty for a cell without finished runs.

    Returns
    -------
    Path
        The Markdown table.
    """
    rows, columns = list(dict.fromkeys(c.row for c in grid.cells)), list(dict.fromkeys(c.column for c in grid.cells))
    lines = [f"# {grid.title}", ""]
    if scale != "paper":
        lines += [
            f"Scale `{scale}`: less data, a smaller encoder and shorter training than in the paper. Figures in "
            "brackets are the paper's, with its own settings; they are not comparable with those beside them.",
            "",
        ]
    measured = dict.fromkeys(run["probes"] for runs in found.values() for run in runs if run.get("probes"))
    lines += [text for how in measured for text in (f"Linear: {how}; the other probes encode alike.", "")]
    if grid.means:
        lines += table_of_means(grid, found)
    elif len(columns) == 1 and len(grid.figures) > 1:
        lines += _table_of_figures(grid, rows, columns[0], found)
    else:
        for key in grid.figures:
            lines += [f"## {FIGURES[key][0]}", "", *_table_of_columns(grid, rows, columns, key, found), ""]
    lines += differences_of_means(grid, found) if grid.means else _differences(grid, columns, found)
    lines += ["", _describe_spread(found), "", f"![{grid.title}]({grid.name}.png)", ""]
    lines += [f"*Figure 1. {grid.title}: {FIGURES[grid.figures[0]][0]}; error bars are ± one standard deviation.*", ""]
    content = [
        {"row": c.row, "column": c.column, "paper": c.paper, "settings": c.settings, "runs": found[c.row, c.column]}
        for c in grid.cells
    ]
    text = json.dumps({"scale": scale, **provenance("python -m pipelines"), "cells": content}, indent=1)
    write_atomically(out / f"{grid.name}.json", text + "\n")
    _draw(out / f"{grid.name}.png", grid, rows, columns, found)
    path = out / f"{grid.name}.md"
    write_atomically(path, "\n".join(lines))
    return path


def mean_and_deviation(runs: Runs, key: str) -> tuple[float, float] | None:
    """Return the mean and sample standard deviation of a figure, in the unit of FIGURES.

    The deviation of a single run is 0. None if no run has the figure.
    """
    values = [run[key] * FIGURES[key][1] for run in runs if key in run]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _table_of_figures(grid: Grid, rows: list[str], column: str, found: Found) -> list[str]:
    """Return the table of a grid with one column: several figures side by side."""
    keys = [key for key in grid.figures if any(key in run for runs in found.values() for run in runs)]
    lines = head([grid.rows, "seeds", *(FIGURES[key][0] for key in keys)])
    for row in rows:
        runs = found[row, column]
        cells = [_summary(runs, key) + _paper(grid, row, column, key) for key in keys]
        lines.append(line([row, str(len(runs)), *cells]))
    return lines


def _table_of_columns(grid: Grid, rows: list[str], columns: list[str], key: str, found: Found) -> list[str]:
    lines = head([grid.rows, *columns])
    for row in rows:
        cells = [_summary(found.get((row, c), []), key) + _paper(grid, row, c, key) for c in columns]
        lines.append(line([row, *cells]))
    return lines


def _describe_spread(found: Found) -> str:
    counts = {len(runs) for runs in found.values() if runs}
    if max(counts, default=0) < 2:
        return "One seed per cell."
    return f"Mean ± standard deviation over {'up to ' if len(counts) > 1 else ''}{max(counts)} seeds."


def _differences(grid: Grid, columns: list[str], found: Found) -> list[str]:
    """Return a table of the differences between compared rows, over the seeds that both have."""
    lines: list[str] = []
    keys = [key for key in grid.figures if FIGURES[key][1] == 100 and key not in NOT_COMPARED]
    for column in columns:
        for row, base in grid.against.items():
            pairs = pair_by_seed(found.get((row, column), []), found.get((base, column), []))
            if len(pairs) > 1:
                cells = [_difference(pairs, key) for key in keys]
                lines.append(line([row, base, str(len(pairs)), *cells]))
    if not lines:
        return []
    heads = [grid.rows, "compared with", "seeds", *(FIGURES[key][0] for key in keys)]
    return [
        "",
        "## Differences, percentage points",
        "",
        *head(heads),
        *lines,
        "",
        "Mean of the differences seed by seed ± its standard error.",
    ]


def _difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]], key: str) -> str:
    values = [(run[key] - base[key]) * FIGURES[key][1] for run, base in pairs if key in run and key in base]
    if len(values) < 2:
        return "-"
    return f"{statistics.fmean(values):+.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def _summary(runs: Runs, key: str) -> str:
    figures = mean_and_deviation(runs, key)
    if figures is None:
        return "-"
    digits = 1 if FIGURES[key][1] == 100 else 3
    return f"{figures[0]:.{digits}f} ± {figures[1]:.{digits}f}" if len(runs) > 1 else f"{figures[0]:.{digits}f}"


def _paper(grid: Grid, row: str, column: str, key: str) -> str:
    cell = _find_cell(grid, row, column)
    return f" ({cell.paper[key]:.2f})" if cell is not None and key in cell.paper else ""


def _find_cell(grid: Grid, row: str, column: str) -> Cell | None:
    return next((cell for cell in grid.cells if (cell.row, cell.column) == (row, column)), None)


def _colours(count: int) -> list[Any]:
    """Return `count` different colours: matplotlib's own, or, since these repeat after ten, a scale of so many."""
    from matplotlib import colormaps

    if count <= 10:
        return [f"C{n}" for n in range(count)]
    return [colormaps["turbo"](n / (count - 1)) for n in range(count)]


def _draw(path: Path, grid: Grid, rows: list[str], columns: list[str], found: Found) -> None:
    """Plot the grid's first figure, with one group or point per column and one colour per row."""
    from matplotlib.figure import Figure

    key = grid.figures[0]
    transposed = len(columns) == 1 and len(rows) > 1  # with a single column, rows are on the axis
    ticks, series = (rows, columns) if transposed else (columns, rows)
    figure = Figure(figsize=(max(6.0, 0.55 * len(ticks) * max(1, len(series) / 2)), 4), layout="constrained")
    axes = figure.subplots()
    width, colours = 0.8 / len(series), _colours(len(series))
    for number, name in enumerate(series):
        x, means, errors, paper_x, paper = [], [], [], [], []
        for at, tick in enumerate(ticks):
            row, column = (tick, name) if transposed else (name, tick)
            figures = mean_and_deviation(found.get((row, column), []), key)
            position = float(at) if grid.numeric else at + (number - (len(series) - 1) / 2) * width
            if figures is not None:
                x.append(position)
                means.append(figures[0])
                errors.append(figures[1])
            cell = _find_cell(grid, row, column)
            if cell is not None and key in cell.paper:
                paper_x.append(position)
                paper.append(cell.paper[key])
        colour = colours[number]
        if grid.numeric:
            axes.errorbar(x, means, errors, marker="o", capsize=3, color=colour, label=name)
        else:
            axes.bar(x, means, width, yerr=errors, capsize=3, color=colour, label=name)
        if paper:
            axes.plot(paper_x, paper, "D", mfc="none", color=colour, label=f"{name}, paper")
    axes.set_xticks(
        range(len(ticks)), ticks, rotation=0 if grid.numeric else 40, ha="center" if grid.numeric else "right"
    )
    axes.set(ylabel=FIGURES[key][0], title=grid.title)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3, axis="y")
    if len(series) > 1 or axes.get_legend_handles_labels()[1][1:]:
        figure.legend(fontsize=7, loc="outside lower center", ncols=2)  # inside, it hides bars
    write_atomically(path, lambda f: figure.savefig(f, format="png", dpi=110))
