"""Ablation of the texture negatives, which is not in the paper. docs/negatives.md discusses the figures."""

from dataclasses import dataclass, field

from pipelines.grids.grid import Cell, Grid, Scale, Settings

# With geometric views alone, two views of an image can be matched by colour, whatever the negatives are.
VIEWS: Settings = {"weak": "mocov2"}
HALF_SIDE = 16  # pixels, of the 32 px of CIFAR and shapes: such patches show more of the object
# A third of the CIFAR-10 textures exceed this; those that collapsed to a flat colour have the highest values.
NOT_FLAT = "completeness < 23"
FIGURES = (
    *("linear", "knn", "destroyed", "without_shape", "without_texture", "without_colour", "corruption", "shape_bias"),
    *("ood", "ood_textures", "told_apart", "one_direction", "own_texture"),
)


@dataclass(frozen=True)
class _Row:
    """A row: its settings, the options that build its data, and the row that it is compared with."""

    settings: Settings = field(default_factory=dict)
    build: Settings = field(default_factory=dict)
    filter: str | None = None
    against: str | None = "none"


def negatives(scale: Scale, columns: tuple[str, ...]) -> Grid:
    """Ablation of the texture negatives, on one data set."""
    data, rows = columns[0], _rows()
    cells = tuple(
        Cell(name, data, data, {**VIEWS, **row.settings}, {}, row.build, row.filter) for name, row in rows.items()
    )
    against = {name: row.against for name, row in rows.items() if row.against is not None}
    return Grid("negatives", f"Ablation of the negatives, {data}", "negatives", cells, FIGURES, against=against)


def _rows() -> dict[str, _Row]:
    rows = {
        "untrained": _Row({"texture_role": "none", "epochs": 0}, against=None),
        "none": _Row({"texture_role": "none"}, against=None),
        "texture": _Row(),
        "texture, own": _Row({"scope": "own"}),
        "texture, alpha 2": _Row({"alpha": 2.0}),
        "texture, own, alpha 2": _Row({"scope": "own", "alpha": 2.0}),
        "texture as positive": _Row({"texture_role": "positive"}),
        "patch-shuffle": _Row({"texture_source": "patch-shuffle"}),
        "texture and patch-shuffle": _Row({"texture_source": "both"}),
        "texture as instance": _Row({"texture_role": "instance"}),
        "texture inside": _Row({"texture_part": "inside"}),
        "texture inside, own": _Row({"texture_part": "inside", "scope": "own"}),
    }
    for method in ("efros-leung", "wei-levoy", "wang-tiles", "quilting"):
        rows[f"texture by {method}"] = _Row(build={"method": method})
    rows["texture, half-side patches"] = _Row(build={"patch_size": HALF_SIDE})
    rows["texture, patches from corners"] = _Row(build={"patches_from": "corners"})
    rows |= _pair("whole queries", {"texture_query": "whole"})
    rows |= _pair("no grid", {"grid": 1, "cells": 1})
    rows |= _pair("geometric views", {"weak": "geometric"})
    for method in ("mocov2", "simclr"):
        rows |= _pair(method, {"method": method})
    return rows | _pair("flat textures removed", {}, NOT_FLAT)


def _pair(name: str, settings: Settings, only: str | None = None) -> dict[str, _Row]:
    """Return a row without textures and one with textures, which is compared with the former instead of "none"."""
    base = f"none, {name}"
    return {
        base: _Row({**settings, "texture_role": "none"}, filter=only, against=None),
        f"texture, {name}": _Row({**settings, "texture_role": "negative"}, filter=only, against=base),
    }
