"""The tables of the SACL paper, an ablation of its negatives and novelty detection, each a grid of runs.

To add a table, write a function ``(scale, columns) -> Grid`` and add it to GRIDS. Its docstring is the command's help.
"""

from dataclasses import replace

from pipelines.grids.grid import Grid, GridMaker, Scale, Settings
from pipelines.grids.negatives import negatives
from pipelines.grids.novelty import novelty
from pipelines.grids.scales import SCALES
from pipelines.grids.tables import figure7, table3, table4, table5, table6, table7
from texturegen.errors import UserError, nearest

GRIDS: dict[str, GridMaker] = {
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "table7": table7,
    "figure7": figure7,
    "negatives": negatives,
    "novelty": novelty,
}

__all__ = ["GRIDS", "SCALES", "make_grid", "narrow"]


def make_grid(name: str, scale: Scale) -> Grid:
    """Return a grid with complete training settings in every cell.

    Parameters
    ----------
    name : str
        Key of GRIDS.
    scale : Scale
        One of SCALES: data, encoder and length of training.

    Returns
    -------
    Grid
        The grid. Settings of a cell take precedence over those of its method's heads, then of its data set, then of the
        scale.
    """
    grid = GRIDS[name](scale, scale.columns.get(name, scale.columns[""]))
    cells = []
    for cell in grid.cells:
        method = cell.settings.get("method", "sacl")
        common = {**scale.train, **scale.train_of.get(cell.dataset, {}), **scale.heads.get(method, {})}
        cells.append(replace(cell, settings={**common, **cell.settings}))
    return replace(grid, cells=tuple(cells))


def narrow(grid: Grid, only: tuple[str, ...], changes: Settings) -> Grid:
    """Select a part of a grid, and change its settings.

    Parameters
    ----------
    grid : Grid
        The whole grid.
    only : tuple of str
        Names of rows and columns to keep; empty keeps all of them.
    changes : dict
        Settings that override those of every cell.

    Returns
    -------
    Grid
        The cells in the named rows and columns. If only rows are named, all columns are kept, and vice versa.

    Raises
    ------
    UserError
        A name in `only` is neither a row nor a column.
    """
    rows, columns = {cell.row for cell in grid.cells}, {cell.column for cell in grid.cells}
    for name in only:
        if name not in rows | columns:
            known = sorted(rows | columns)
            raise UserError(
                f"{grid.name} has no row or column {name!r}{nearest(name, known)}; it has {', '.join(known)}"
            )
    chosen = [
        cell
        for cell in grid.cells
        if (not rows & set(only) or cell.row in only) and (not columns & set(only) or cell.column in only)
    ]
    return replace(grid, cells=tuple(replace(cell, settings={**cell.settings, **changes}) for cell in chosen))
