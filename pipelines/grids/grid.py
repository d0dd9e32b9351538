"""Data classes of a grid: its cells, the table that they form, and the scale at which it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One entry of a table: a run of `sacl-train`, repeated for every seed.

    Attributes
    ----------
    row, column : str
        Position in the table.
    dataset : str
        Key of `Scale.data`.
    settings : dict
        Settings of `sacl-train`.
    paper : dict of str to float
        Figures that the paper reports for this cell, in per cent, by key in `Grid.figures`.
    build : dict
        Options of `texturegen build` for the training set, besides those of the data set.
    filter : str, optional
        Condition for `texturegen split`; the run trains only on images that pass.
    """

    row: str
    column: str
    dataset: str
    settings: Settings
    paper: dict[str, float] = field(default_factory=dict)
    build: Settings = field(default_factory=dict)
    filter: str | None = None


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes
    ----------
    name : str
        Key of GRIDS, and stem of the output files.
    title : str
        Heading of the table and of its plot.
    rows : str
        Heading of the first column: the property that varies between rows.
    cells : tuple of Cell
        All cells, in the order in which they run.
    figures : tuple of str
        Keys of `figures.FIGURES` to show. The first one is plotted.
    numeric : bool
        Whether the plot's horizontal axis is numeric, and lines are drawn instead of bars.
    against : dict of str to str
        Row -> the row to compare it with, seed by seed.
    means : bool
        Whether the columns are repetitions, and the table shows the means over them.
    """

    name: str
    title: str
    rows: str
    cells: tuple[Cell, ...]
    figures: tuple[str, ...] = ("linear",)
    numeric: bool = False
    against: dict[str, str] = field(default_factory=dict)
    means: bool = False


@dataclass(frozen=True)
class Scale:
    """Data, encoder and length of training of a grid.

    Attributes
    ----------
    name : str
        Key of SCALES.
    seeds : int
        Number of runs per cell.
    data : dict
        Data set -> name of a set -> options of `texturegen build`. The sets are "train" and "test", and for some
        figures "conflict" (shape bias), "textures" (the test set with its textures) and "ood" (another data set).
    train : dict
        Settings of every run.
    heads : dict
        Method -> settings of its heads.
    probe : dict
        Settings of the linear probe.
    corruption : dict
        Settings of the corruption benchmark.
    batches, epochs : tuple of int
        Columns of tables 5 and 7.
    columns : dict
        Grid -> its data sets; the key "" applies to all other grids.
    train_of, probe_of : dict
        Data set -> settings that override `train` and `probe`.
    """

    name: str
    seeds: int
    data: dict[str, dict[str, Settings]]
    train: Settings
    heads: dict[str, Settings]
    probe: Settings
    corruption: Settings
    batches: tuple[int, int, int]
    epochs: tuple[int, int, int]
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    train_of: dict[str, Settings] = field(default_factory=dict)
    probe_of: dict[str, Settings] = field(default_factory=dict)


GridMaker = Callable[[Scale, tuple[str, ...]], Grid]
