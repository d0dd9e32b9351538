"""Tables of a grid whose columns are repetitions, such as the classes of the one-class protocol: means over them."""

import statistics

from pipelines.grids.figures import FIGURES, NOT_COMPARED, Found, Runs, head, line, pair_by_seed
from pipelines.grids.grid import Grid


def table_of_means(grid: Grid, found: Found) -> list[str]:
    """Return the lines of a table: for each row, the mean over the columns of each figure and its standard error."""
    rows = list(dict.fromkeys(cell.row for cell in grid.cells))
    keys = [key for key in grid.figures if any(key in run for runs in found.values() for run in runs)]
    lines = head([grid.rows, "columns", "runs", *(FIGURES[key][0] for key in keys)])
    for row in rows:
        columns = [runs for (name, _), runs in found.items() if name == row and runs]
        count = str(sum(map(len, columns)))
        lines.append(line([row, str(len(columns)), count, *(_summary(columns, key) for key in keys)]))
    return [
        *lines,
        "",
        "Mean over the columns ± its standard error, estimated from the spread between the seeds of a column.",
    ]


def differences_of_means(grid: Grid, found: Found) -> list[str]:
    """Return the lines of a table of differences between compared rows, over the columns and seeds that both have."""
    keys = [key for key in grid.figures if FIGURES[key][1] == 100 and key not in NOT_COMPARED]
    lines: list[str] = []
    for row, base in grid.against.items():
        pairs = [
            pair
            for (name, column), runs in found.items()
            if name == row
            for pair in pair_by_seed(runs, found.get((base, column), []))
        ]
        if len(pairs) > 1:
            cells = []
            for key in keys:
                values = [100 * (run[key] - other[key]) for run, other in pairs if key in run and key in other]
                cells.append(_with_error(values) if len(values) > 1 else "-")
            lines.append(line([row, base, str(len(pairs)), *cells]))
    if not lines:
        return []
    heads = [grid.rows, "compared with", "pairs", *(FIGURES[key][0] for key in keys)]
    note = "Mean of the differences, column by column and seed by seed, ± its standard error."
    return ["", "## Differences, percentage points", "", *head(heads), *lines, "", note]


def _summary(columns: list[Runs], key: str) -> str:
    """Return the mean of the columns' means, with an error if each column has several runs."""
    values = [[run[key] * FIGURES[key][1] for run in runs if key in run] for runs in columns]
    values = [each for each in values if each]
    if not values:
        return "-"
    mean = statistics.fmean(map(statistics.fmean, values))
    if min(map(len, values)) < 2:
        return f"{mean:.1f}"
    error = sum(statistics.variance(each) / len(each) for each in values) ** 0.5 / len(values)
    return f"{mean:.1f} ± {error:.1f}"


def _with_error(values: list[float]) -> str:
    return f"{statistics.fmean(values):+.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"
