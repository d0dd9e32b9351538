"""The paper's tables, and the ablation it lacks, as grids of runs: what differs from cell to cell, and its figures.

Scales: `tiny` is the embedded set, to see that all of it runs; `small` a part of CIFAR-10/100 and a small encoder, for
a CPU and a night; `paper` is the paper's own, for a GPU. Only `paper` is comparable with the paper's figures.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from texturegen.errors import UserError, nearest

Settings = dict[str, Any]

PAPER_SETS = ("cifar10", "cifar100", "stl10", "imagenet100")


@dataclass(frozen=True)
class Cell:
    """One run (of each seed): its place in the table, its data, its settings, and the paper's figures of it.

    dataset: of `Scale.data`. paper: key of `Grid.figures` -> per cent. synthesis: method of `texturegen build` for its
    textures. filter: of `texturegen split`; it learns from the images that pass alone.
    """

    row: str
    column: str
    dataset: str
    settings: Settings
    paper: dict[str, float] = field(default_factory=dict)
    synthesis: str | None = None
    filter: str | None = None


@dataclass(frozen=True)
class Grid:
    """A table.

    rows: what its rows are. figures: keys of `grid_runner.FIGURES` that are shown; the first is the table's own.
    numeric: what the columns (or, of one column, the rows) are numbers of: a line is drawn, not bars.
    against: row -> the row that it is compared with, seed by seed.
    """

    name: str
    title: str
    rows: str
    cells: tuple[Cell, ...]
    figures: tuple[str, ...] = ("linear",)
    numeric: bool = False
    against: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How large a grid is run.

    data: name -> options of `texturegen build` for its train and its test sets, the first of these is the table's.
    train: settings of every run; heads: of those methods whose heads have them. columns: a table's data sets.
    probe: settings of the linear probe. train_of, probe_of: of one data set, over those. corruption: of that probe.
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


def _set(dataset: str, train: Settings, test: Settings) -> dict[str, Settings]:
    return {"train": {"dataset": dataset, **train}, "test": {"dataset": dataset, "per_image": 0, **test}}


def _heads(width: int, queue: int) -> dict[str, Settings]:
    sacl = {"projector_hidden": width, "projector_out": width // 2, "predictor_hidden": width // 2}
    byol = {"projector_hidden": width, "projector_out": width // 2, "predictor_hidden": width}
    simsiam = {"projector_hidden": width, "projector_out": width, "predictor_hidden": width // 4}
    return {
        "sacl": sacl,
        "fast-moco": sacl,
        "byol": byol,
        "simsiam": simsiam,
        "barlow": {"projector_hidden": width, "projector_out": width},
        "mocov2": {"queue": queue},
        "pirl": {"negatives": queue},
    }


SCALES = {
    "tiny": Scale(
        "tiny",
        seeds=2,
        data={
            "shapes": {
                **_set("shapes", {"split": "train", "limit": 96}, {"split": "test", "limit": 60}),
                "conflict": {"dataset": "shapes", "split": "conflict", "per_image": 0, "limit": 60},
            }
        },
        train={"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16, "epochs": 1}
        | {"knn_every": 0, "keep": 1},
        heads=_heads(16, 64),
        probe={"epochs": 5},
        corruption={"images": 4, "severities": (3,)},
        batches=(8, 16, 32),
        epochs=(1, 2, 3),
        columns={"": ("shapes",)},
    ),
    "small": Scale(
        "small",
        seeds=3,
        data={
            name: _set(name, {"split": "train", "limit": 5000}, {"split": "test", "limit": 2000})
            for name in ("cifar10", "cifar100")
        },
        train={"encoder": "se_resnet20", "stem": "cifar-stride2", "batch_size": 64, "epochs": 10, "lr": 0.1}
        | {"knn_every": 0, "keep": 1},
        heads=_heads(256, 1024),
        probe={"epochs": 50},
        corruption={"images": 200, "severities": (1, 3, 5)},
        batches=(32, 64, 128),
        epochs=(5, 10, 20),
        columns={"": ("cifar10",), "table3": ("cifar10", "cifar100"), "table5": ("cifar10", "cifar100")}
        | {"figure7": ("cifar10", "cifar100"), "table7": ("cifar100",)},
    ),
    "paper": Scale(
        "paper",
        seeds=3,
        data={
            "cifar10": _set("cifar10", {"split": "train"}, {"split": "test"}),
            "cifar100": _set("cifar100", {"split": "train"}, {"split": "test"}),
            "stl10": _set("stl10", {"split": "train"}, {"split": "test"}),
            "imagenet100": _set("imagenet100", {"split": "train", "size": 224}, {"split": "val", "size": 224}),
        },
        train={"encoder": "se_resnet50", "batch_size": 128, "epochs": 200, "lr": 0.1, "keep": 1}
        | {"precision": "bf16"},  # of an accelerator
        heads={"mocov2": {"queue": 4096}, "pirl": {"negatives": 4096}},
        probe={"epochs": 200},
        train_of={"imagenet100": {"epochs": 100}},
        probe_of={"imagenet100": {"epochs": 100}},
        corruption={"images": 1000, "severities": (1, 2, 3, 4, 5)},  # of one thread: all would take hours a cell
        batches=(32, 64, 128),
        epochs=(200, 400, 800),
        columns={"": ("cifar10",), "table3": PAPER_SETS, "table4": ("imagenet100",)}
        | {"table5": ("cifar10", "cifar100", "stl10"), "table6": ("imagenet100",), "table7": ("cifar100",)}
        | {"figure7": ("cifar10", "cifar100")},
    ),
}

TABLE3 = {
    "pirl": (55.78, 31.55, 50.26),
    "simclr": (52.58, 21.26, 44.50),
    "byol": (80.14, 58.28, 84.88),
    "simsiam": (75.58, 49.21, 71.78),
    "mocov2": (82.35, 53.44, 81.25),
    "sacl": (83.74, 58.90, 84.90, 78.3),  # the last one from the abstract
}
TABLE4 = {"standard": (78.0, 94.0), "pre": (77.77, 93.57), "post": (77.25, 93.65), "identity": (77.84, 93.85)}
TABLE5 = {"cifar10": (55.78, 78.25, 83.74), "cifar100": (21.55, 41.26, 58.90), "stl10": (71.87, 79.68, 84.90)}
# The paper says "collapse" for 0.5 and below.
TABLE6 = {0.5: None, 0.6: 40.36, 0.7: 50.37, 0.8: 57.34, 0.9: 66.17, 0.99: 78.00, 0.999: 73.13, 1.0: 51.21}
TABLE7 = {"mocov2": (53.44, 59.62, 63.74), "sacl": (58.90, 62.26, 65.83)}
TAUS = (0.07, 0.1, 0.2, 0.5, 1.0)  # figure 7 has no numbers beside its points


def make_grid(name: str, scale: Scale) -> Grid:
    """The grid of that name, one of GRIDS, with the settings of `scale` in its cells."""
    grid = GRIDS[name](scale, scale.columns.get(name, scale.columns[""]))
    cells = []
    for cell in grid.cells:
        method = cell.settings.get("method", "sacl")
        # Later ones win: those of the scale, of the data set and of the method's heads at it, of the cell.
        usual = {**scale.train, **scale.train_of.get(cell.dataset, {})}
        settings = {**usual, **scale.heads.get(method, {}), **cell.settings}
        cells.append(replace(cell, settings=settings))
    return replace(grid, cells=tuple(cells))


def narrow(grid: Grid, only: tuple[str, ...], changes: Settings) -> Grid:
    """The grid's cells in rows or columns named in `only` (all, if nothing is), with `changes` to all settings.

    UserError for a name that is neither.
    """
    rows, columns = {cell.row for cell in grid.cells}, {cell.column for cell in grid.cells}
    for name in only:
        if name not in rows | columns:
            known = sorted(rows | columns)
            raise UserError(f"{grid.name} has no row or column {name!r}{nearest(name, known)}; it has {known}")
    chosen = [
        cell
        for cell in grid.cells
        if (not rows & set(only) or cell.row in only) and (not columns & set(only) or cell.column in only)
    ]
    return replace(grid, cells=tuple(replace(cell, settings={**cell.settings, **changes}) for cell in chosen))


def _linear(paper: float | None) -> dict[str, float]:
    return {} if paper is None else {"linear": paper}


def _table3(scale: Scale, columns: tuple[str, ...]) -> Grid:
    cells = []
    for method in (*TABLE3, "fast-moco", "barlow"):
        for column in columns:
            known = dict(zip(PAPER_SETS, TABLE3.get(method, ()), strict=False))
            cells.append(Cell(method, column, column, {"method": method}, _linear(known.get(column))))
    return Grid("table3", "Linear evaluation of six methods (SACL, table 3), and of two more", "method", tuple(cells))


def _table4(scale: Scale, columns: tuple[str, ...]) -> Grid:
    cells = [
        Cell(place, column, column, {"placement": place}, known if column == "imagenet100" else {})
        for place, (top1, top5) in TABLE4.items()
        for known in ({"linear": top1, "top5": top5},)
        for column in columns
    ]
    return Grid("table4", "Where SE stands in a block (SACL, table 4)", "placement", tuple(cells), ("linear", "top5"))


def _table5(scale: Scale, columns: tuple[str, ...]) -> Grid:
    cells = [
        Cell(column, str(size), column, {"batch_size": size}, _linear(paper))
        for column in columns
        for size, paper in zip(scale.batches, TABLE5.get(column, (None,) * 3), strict=True)
    ]
    return Grid("table5", "Batch size (SACL, table 5)", "data set", tuple(cells), numeric=True)


def _table6(scale: Scale, columns: tuple[str, ...]) -> Grid:
    cells = [
        Cell(column, f"{m:g}", column, {"momentum": m}, _linear(paper if column == "imagenet100" else None))
        for column in columns
        for m, paper in TABLE6.items()
    ]
    return Grid("table6", "EMA coefficient m (SACL, table 6)", "data set", tuple(cells), ("linear", "spread"))


def _table7(scale: Scale, columns: tuple[str, ...]) -> Grid:
    comparable = scale.name == "paper"  # elsewhere its columns are other numbers of epochs
    cells = [
        Cell(method, str(epochs), column, {"method": method, "epochs": epochs}, _linear(paper if comparable else None))
        for column in columns
        for method, figures in TABLE7.items()
        for epochs, paper in zip(scale.epochs, figures, strict=True)
    ]
    return Grid("table7", f"Epochs, {', '.join(columns)} (SACL, table 7)", "method", tuple(cells), numeric=True)


def _figure7(scale: Scale, columns: tuple[str, ...]) -> Grid:
    cells = [Cell(column, f"{tau:g}", column, {"tau": tau}) for column in columns for tau in TAUS]
    return Grid("figure7", "Temperature (SACL, figure 7)", "data set", tuple(cells), numeric=True)


VIEWS = {"weak": "mocov2"}  # geometry alone leaves every method the colours to match by
# Of the textures of CIFAR-10 a third lacks more than this of what its patches show, the flat ones among them.
NOT_FLAT = "completeness < 12"
BASES = ("no grid", "geometric views", "mocov2", "simclr", "flat ones left out")  # a row "none, BASE" is compared with


def _negatives(scale: Scale, columns: tuple[str, ...]) -> Grid:
    data = columns[0]
    rows: dict[str, tuple[Settings, str | None]] = {
        "untrained": ({"texture_role": "none", "epochs": 0}, None),
        "none": ({"texture_role": "none"}, None),
        "texture": ({}, None),
        "texture, own": ({"scope": "own"}, None),
        "texture, alpha 2": ({"alpha": 2.0}, None),
        "texture, own, alpha 2": ({"scope": "own", "alpha": 2.0}, None),
        "texture as positive": ({"texture_role": "positive"}, None),
        "patch-shuffle": ({"texture_source": "patch-shuffle"}, None),
        "texture and patch-shuffle": ({"texture_source": "both"}, None),
        "texture as instance": ({"texture_role": "instance"}, None),
        "texture inside": ({"texture_part": "inside"}, None),
        "texture inside, own": ({"texture_part": "inside", "scope": "own"}, None),
        **{f"texture by {name}": ({}, name) for name in ("efros-leung", "wei-levoy", "wang-tiles", "quilting")},
        "none, no grid": ({"texture_role": "none", "grid": 1, "cells": 1}, None),
        "texture, no grid": ({"grid": 1, "cells": 1}, None),
        "none, geometric views": ({"texture_role": "none", "weak": "geometric"}, None),
        "texture, geometric views": ({"weak": "geometric"}, None),
        **{
            f"{word}, {method}": ({"method": method, "texture_role": role}, None)
            for method in ("mocov2", "simclr")
            for word, role in (("none", "none"), ("texture", "negative"))
        },
        # Both without the images whose textures are flat.
        "none, flat ones left out": ({"texture_role": "none"}, None),
        "texture, flat ones left out": ({}, None),
    }
    cells = tuple(
        Cell(name, data, data, {**VIEWS, **settings}, {}, synthesis, NOT_FLAT if "flat" in name else None)
        for name, (settings, synthesis) in rows.items()
    )
    figures = ("linear", "knn", "destroyed", "corruption", "shape_bias", "told_apart", "one_direction", "own_texture")
    against = {
        row: next((f"none, {base}" for base in BASES if row.endswith(f", {base}")), "none")
        for row in rows
        if not row.startswith(("none", "untrained"))
    }
    return Grid("negatives", f"What the negatives do, {data}", "negatives", cells, figures, against=against)


GRIDS: dict[str, Callable[[Scale, tuple[str, ...]], Grid]] = {
    "table3": _table3,
    "table4": _table4,
    "table5": _table5,
    "table6": _table6,
    "table7": _table7,
    "figure7": _figure7,
    "negatives": _negatives,
}
