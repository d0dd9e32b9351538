"""The paper's tables 3 to 7 and figure 7 as grids, with the reported figures."""

from pipelines.grids.grid import Cell, Grid, Scale
from pipelines.grids.scales import PAPER_SETS

TABLE3 = {
    "pirl": (55.78, 31.55, 50.26),
    "simclr": (52.58, 21.26, 44.50),
    "byol": (80.14, 58.28, 84.88),
    "simsiam": (75.58, 49.21, 71.78),
    "mocov2": (82.35, 53.44, 81.25),
    "sacl": (83.74, 58.90, 84.90, 78.3),  # the last figure is from the abstract
}
TABLE4 = {"standard": (78.0, 94.0), "pre": (77.77, 93.57), "post": (77.25, 93.65), "identity": (77.84, 93.85)}
TABLE5 = {"cifar10": (55.78, 78.25, 83.74), "cifar100": (21.55, 41.26, 58.90), "stl10": (71.87, 79.68, 84.90)}
# The paper reports "collapse" for 0.5.
TABLE6 = {0.5: None, 0.6: 40.36, 0.7: 50.37, 0.8: 57.34, 0.9: 66.17, 0.99: 78.00, 0.999: 73.13, 1.0: 51.21}
TABLE7 = {"mocov2": (53.44, 59.62, 63.74), "sacl": (58.90, 62.26, 65.83)}
TAUS = (0.07, 0.1, 0.2, 0.5, 1.0)  # figure 7 prints no numbers


def table3(scale: Scale, columns: tuple[str, ...]) -> Grid:
    """Table 3: methods, with Fast-MoCo and Barlow Twins added.

    All methods use MoCo v2's views: if each used its own, the table would compare the views.
    """
    cells = []
    for method in (*TABLE3, "fast-moco", "barlow"):
        for column in columns:
            known = dict(zip(PAPER_SETS, TABLE3.get(method, ()), strict=False))
            cells.append(Cell(method, column, column, {"method": method, "weak": "mocov2"}, _linear(known.get(column))))
    title = "Linear evaluation by method (SACL, table 3), all methods on MoCo v2's views"
    return Grid("table3", title, "method", tuple(cells))


def table4(scale: Scale, columns: tuple[str, ...]) -> Grid:
    """Table 4: placement of the SE block."""
    cells = [
        Cell(place, column, column, {"placement": place}, known if column == "imagenet100" else {})
        for place, (top1, top5) in TABLE4.items()
        for known in ({"linear": top1, "top5": top5},)
        for column in columns
    ]
    return Grid("table4", "Placement of the SE block (SACL, table 4)", "placement", tuple(cells), ("linear", "top5"))


def table5(scale: Scale, columns: tuple[str, ...]) -> Grid:
    """Table 5: batch size."""
    cells = [
        Cell(column, str(size), column, {"batch_size": size}, _linear(paper))
        for column in columns
        for size, paper in zip(scale.batches, TABLE5.get(column, (None,) * 3), strict=True)
    ]
    return Grid("table5", "Batch size (SACL, table 5)", "data set", tuple(cells), numeric=True)


def table6(scale: Scale, columns: tuple[str, ...]) -> Grid:
    """Table 6: momentum m of the EMA target."""
    cells = [
        Cell(column, f"{m:g}", column, {"momentum": m}, _linear(paper if column == "imagenet100" else None))
        for column in columns
        for m, paper in TABLE6.items()
    ]
    return Grid("table6", "EMA coefficient m (SACL, table 6)", "data set", tuple(cells), ("linear", "spread"))


def table7(scale: Scale, columns: tuple[str, ...]) -> Grid:
    """Table 7: number of epochs."""
    comparable = scale.name == "paper"  # the other scales train for fewer epochs
    cells = [
        Cell(method, str(epochs), column, {"method": method, "epochs": epochs}, _linear(paper if comparable else None))
        for column in columns
        for method, figures in TABLE7.items()
        for epochs, paper in zip(scale.epochs, figures, strict=True)
    ]
    return Grid("table7", f"Epochs, {', '.join(columns)} (SACL, table 7)", "method", tuple(cells), numeric=True)


def figure7(scale: Scale, columns: tuple[str, ...]) -> Grid:
    """Figure 7: temperature."""
    cells = [Cell(column, f"{tau:g}", column, {"tau": tau}) for column in columns for tau in TAUS]
    return Grid("figure7", "Temperature (SACL, figure 7)", "data set", tuple(cells), numeric=True)


def _linear(paper: float | None) -> dict[str, float]:
    """Return `Cell.paper` for a linear top-1 in per cent; None if the paper reports none."""
    return {} if paper is None else {"linear": paper}
